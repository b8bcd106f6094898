"""Meta-test: the sub-policies frozen, a new master learns each task."""

import dataclasses

import torch

from mlsh.envs import make_env, most_episodes
from mlsh.ppo import adam, update
from mlsh.rollout import collect, joined, streams


def with_new_masters(agent, n, seed):
    """The agent with `n` new masters, and the sub-policies and normaliser it has."""
    agent = agent._replace(master=agent.master.like(n))
    agent.master.reset(streams(seed, 0, "test: master", range(n)))
    return agent


def as_flat(agent, cfg, n):
    """An agent of one sub-policy (a shared policy) and its Config, as `n` flat policies for `learn` to fine-tune."""
    cfg = dataclasses.replace(cfg, num_low=0, W=1, U=0, hlr=cfg.llr, bs=-(-cfg.N * cfg.T // cfg.parts_low))
    return agent._replace(master=agent.subs.only([0] * n), subs=agent.subs.like(0)), cfg


def learn(agent, env, tasks, cfg, updates, before=lambda rollout: None):
    """PPO updates of the agent's masters, one a task of `tasks`; φ and the normaliser stay as they are.

    `env`: batched, `cfg.N` episodes a task. Calls `before` with a `Rollout` before learning from it, and yields it
    afterwards.
    """
    groups = range(len(tasks))
    optimizer = adam(agent.master, cfg.hlr)
    env.set_task(tasks)
    for i in range(updates):
        rngs = streams(cfg.seed, i, "test: warm-up", groups)
        rollout = collect(env, agent, rngs, low=False, **cfg.rollout)
        before(rollout)
        update(agent.master, optimizer, rollout.master, rngs, **cfg.master_ppo)
        yield rollout


def adapt(agent, env, tasks, cfg, updates):
    """Train a new master for each of `tasks` by `updates` PPO iterations. Returns the new agent and its env steps."""
    agent = with_new_masters(agent, len(tasks), cfg.seed)
    return agent, sum(rollout.steps for rollout in learn(agent, env, tasks, cfg, updates))


def play(agent, tasks, cfg, purpose):
    """`cfg.test_episodes` episodes of each of `tasks`, one a master, as many tasks at once as the environment bears.

    Returns a `Rollout` without batches.
    """
    at_once = max(1, most_episodes(cfg) // cfg.test_episodes)
    played = []
    for first in range(0, len(tasks), at_once):
        some = range(first, min(first + at_once, len(tasks)))
        env = make_env(cfg, cfg.test_episodes * len(some))
        env.set_task([tasks[j] for j in some])
        part = agent._replace(master=agent.master.only(list(some)))
        rollout = collect(env, part, streams(cfg.seed, 0, purpose, some), low=False, **cfg.rollout)
        env.close()
        played.append(rollout)
    return joined(played)


def alone(agent, tasks, cfg):
    """Mean return of each sub-policy when it runs all the time, a list [tasks][K], and the env steps taken."""
    K = agent.subs.n
    if not K:
        return [[] for _ in tasks], 0
    stubborn = agent.master.like(len(tasks) * K)  # weights zero: the bias decides
    with torch.no_grad():
        stubborn.policy_bias[:, 0] = 1e3 * torch.eye(K, device=stubborn.policy_bias.device).repeat(len(tasks), 1)
    agent = agent._replace(master=stubborn)
    played = play(agent, [task for task in tasks for _ in range(K)], cfg, "test: alone")
    return played.episode_return.mean(1).view(len(tasks), K).tolist(), played.steps


def tasks_to_test(env, seed):
    """All tasks of a family of up to ten, else ten that `seed` draws."""
    if env.train_tasks is None:
        return [env.sample_task(rng) for rng in streams(seed, 0, "test: task", range(10))]
    (rng,) = streams(seed, 0, "test: task", [0])
    few = len(env.train_tasks) <= 10
    return env.train_tasks if few else sorted(rng.choice(env.train_tasks, 10, replace=False).tolist())


def final_test(agent, tasks, cfg):
    """For each task W updates (without a warm-up, U) of a new master, then `cfg.test_episodes` episodes with it.

    Returns a list of dicts (task and its label, mean return, its standard error, share of the steps of each
    sub-policy, return of each sub-policy alone, mean of what the environment's info has at the last step) and the env
    steps taken.
    """
    env = make_env(cfg, cfg.N * len(tasks))
    trained, steps = adapt(agent, env, tasks, cfg, cfg.W or cfg.U)
    env.close()
    played = play(trained, tasks, cfg, "test: play")
    of_subs, alone_steps = alone(agent, tasks, cfg)
    returns = played.episode_return.double()  # [tasks, episodes]
    rows = [
        {
            "task": task,
            "label": env.task_label(task),
            "return": returns[j].mean().item(),
            "standard_error": returns[j].std().item() / cfg.test_episodes**0.5,
            "share": [round(x, 4) for x in played.share[j].tolist()],
            "sub_policy_returns": [round(x, 4) for x in of_subs[j]],
            **{f"final_{name}": x[j].mean().item() for name, x in played.final.items()},
        }
        for j, task in enumerate(tasks)
    ]
    return rows, steps + played.steps + alone_steps
