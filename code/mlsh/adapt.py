"""Meta-test: the sub-policies frozen, a new master learns each task."""

import torch

from mlsh.envs import make_env
from mlsh.ppo import update
from mlsh.rollout import collect, streams


def adam(policy, learning_rate):
    return torch.optim.Adam(policy.parameters(), learning_rate, eps=1e-5, fused=True)


def adapt(agent, env, tasks, cfg, updates):
    """Train a new master for each of `tasks` by `updates` PPO iterations; φ and the normaliser stay as they are.

    `env`: batched, `cfg.N` episodes a task. Returns an agent with one master a task, the same sub-policies and
    normaliser, and the env steps taken.
    """
    groups = range(len(tasks))
    agent = agent._replace(master=agent.master.like(len(tasks)))
    agent.master.reset(streams(cfg.seed, 0, "test: master", groups))
    optimizer = adam(agent.master, cfg.hlr)
    env.set_task(tasks)
    steps = 0
    for i in range(updates):
        rngs = streams(cfg.seed, i, "test: warm-up", groups)
        rollout = collect(env, agent, rngs, low=False, **cfg.rollout)
        update(agent.master, optimizer, rollout.master, rngs, **cfg.master_ppo)
        steps += rollout.steps
    return agent, steps


def final_test(agent, tasks, cfg):
    """For each task W updates of a new master, then `cfg.test_episodes` episodes with it.

    Returns a list of dicts (task and its label, mean return, its standard error, share of the steps of each
    sub-policy) and the env steps taken.
    """
    env = make_env(cfg, cfg.N * len(tasks))
    agent, steps = adapt(agent, env, tasks, cfg, cfg.W)
    env = make_env(cfg, cfg.test_episodes * len(tasks))
    env.set_task(tasks)
    played = collect(env, agent, streams(cfg.seed, 0, "test: play", range(len(tasks))), low=False, **cfg.rollout)
    returns = played.episode_return.double()  # [tasks, episodes]
    rows = [
        {
            "task": task,
            "label": env.unwrapped.task_label(task),
            "return": returns[j].mean().item(),
            "standard_error": returns[j].std().item() / cfg.test_episodes**0.5,
            "share": [round(x, 4) for x in played.share[j].tolist()],
        }
        for j, task in enumerate(tasks)
    ]
    return rows, steps + played.steps
