"""Meta-test: the sub-policies frozen, a new master learns each task."""

import dataclasses

import numpy as np
import torch

from mlsh import checkpoint
from mlsh.config import Config
from mlsh.envs import make_env, most_episodes
from mlsh.models import Hierarchy
from mlsh.ppo import Adam, update
from mlsh.rollout import collect, joined, measure, settle
from mlsh.sampling import Streams, tasks_to_test


def load_agent(data, env):
    """A new agent with the checkpoint's sub-policies and normaliser, for a batched environment of fitting spaces."""
    agent = Hierarchy.build(data["config"], env)
    checkpoint.restore(data, subs=agent.subs, normaliser=agent.normaliser)
    return agent


def with_new_masters(agent, n, seed):
    """The agent with `n` new masters, and the sub-policies and normaliser it has."""
    agent = agent._replace(master=agent.master.like(n))
    agent.master.reset(Streams(seed, range(n))(0, "test: master"))
    return agent


def as_flat(agent, cfg, n):
    """An agent of one sub-policy (a shared policy) and its Config, as `n` flat policies for `learn` to fine-tune."""
    cfg = dataclasses.replace(cfg, num_low=0, W=1, U=0, hlr=cfg.llr, bs=-(-cfg.N * cfg.T // cfg.parts_low))
    return agent._replace(master=agent.subs.only([0] * n), subs=agent.subs.like(0)), cfg


def learn(agent, env, tasks, cfg, updates, before=lambda rollout: None):
    """PPO updates of the agent's masters, one a task of `tasks`; φ and its normaliser stay as they are.

    A flat policy from scratch has no statistics yet; it gets them as in training, but the first env steps do not count.
    `env`: batched, `cfg.N` episodes a task. Calls `before` with a `Rollout` before learning from it, and yields it
    afterwards.
    """
    streams = Streams(cfg.seed, range(len(tasks)))
    optimizer = Adam(agent.master, cfg.hlr)
    env.set_task(tasks)
    flat = not agent.subs.n
    if flat and not agent.normaliser.count:
        settle(env, agent, streams(0, "test: normaliser"), **cfg.rollout)
    for i in range(updates):
        rngs = streams(i, "test: warm-up")
        rollout = collect(env, agent, rngs, low=False, **cfg.rollout)
        before(rollout)
        update(agent.master, optimizer, rollout.master, rngs, **cfg.master_ppo)
        if flat:
            agent.normaliser.update(rollout.obs)
        yield rollout


def adapt(agent, env, tasks, cfg, updates):
    """Train a new master for each of `tasks` by `updates` PPO iterations. Returns the new agent and its env steps."""
    agent = with_new_masters(agent, len(tasks), cfg.seed)
    return agent, sum(rollout.outcome.steps for rollout in learn(agent, env, tasks, cfg, updates))


def play(agent, tasks, cfg, purpose):
    """`cfg.test_episodes` episodes of each of `tasks`, one a master, as many tasks at once as the environment bears.

    Returns an `Outcome`.
    """
    at_once = max(1, most_episodes(cfg) // cfg.test_episodes)
    played = []
    for first in range(0, len(tasks), at_once):
        some = range(first, min(first + at_once, len(tasks)))
        env = make_env(cfg, cfg.test_episodes * len(some))
        env.set_task([tasks[j] for j in some])
        part = agent._replace(master=agent.master.only(list(some)))
        played.append(measure(env, part, Streams(cfg.seed, some)(0, purpose), **cfg.play))
        env.close()
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


def final_test(agent, env, cfg):
    """What goes to results.json: the env steps taken, a table of the env's tasks, and one of those it holds out."""
    tables, steps = {}, 0
    for name in ("test", "held_out"):
        if tasks := tasks_to_test(env, cfg.seed, name == "held_out"):
            tables[name], taken = test(agent, env, tasks, cfg)
            steps += taken
    return {"test_env_steps": steps, **tables}


def test(agent, env, tasks, cfg):
    """Learn each of `tasks` by W updates (without a warm-up, U) of a new master, then play `cfg.test_episodes`.

    Returns a row a task, a dict (task and its label, mean return, its standard error, share of the steps of each
    sub-policy, return of each sub-policy alone, mean of what the environment's info has at the last step), and the env
    steps taken. `env` only names the tasks.
    """
    own = make_env(cfg, cfg.N * len(tasks))
    trained, steps = adapt(agent, own, tasks, cfg, cfg.W or cfg.U)
    own.close()
    played = play(trained, tasks, cfg, "test: play")
    of_subs, alone_steps = alone(agent, tasks, cfg)
    returns, final = played.episode_return.double(), played.final_means()  # [tasks, episodes]
    rows = [
        {
            "task": task,
            "label": env.task_label(task),
            "return": returns[j].mean().item(),
            "standard_error": returns[j].std().item() / cfg.test_episodes**0.5,
            "share": [round(x, 4) for x in played.share[j].tolist()],
            "sub_policy_returns": [round(x, 4) for x in of_subs[j]],
            **{name: means[j] for name, means in final.items()},
        }
        for j, task in enumerate(tasks)
    ]
    return rows, steps + played.steps + alone_steps


def learn_anew(data, cfg, env, tasks, ev):
    """How fast a checkpoint's agent learns: env steps [updates + 1] a task, and returns [updates + 1, tasks, seeds].

    MLSH trains `ev.seeds` fresh masters a task over frozen sub-policies; a shared policy (num_low 1) is fine-tuned; a
    run without sub-policies (num_low 0) is PPO from scratch. The first returns are of the untrained. `ev`: the settings
    of evaluate.py.
    """
    blocks = [task for task in tasks for _ in range(ev.seeds)]
    agent = load_agent(data | {"config": cfg}, env) if cfg.num_low else Hierarchy.build(cfg, env)
    if cfg.num_low == 1:
        agent, cfg = as_flat(agent, cfg, len(blocks))
    else:
        agent = with_new_masters(agent, len(blocks), cfg.seed)
    cfg = dataclasses.replace(cfg, **{name: x for name in ("N", "hlr", "bs") if (x := getattr(ev, name))})
    cfg.validate()
    env = make_env(cfg, cfg.N * len(blocks))
    measured = env if not ev.look else make_env(cfg, ev.look * len(blocks))
    measured.set_task(blocks)
    streams = Streams(ev.seed, range(len(blocks)))
    returns, steps = [], [0.0]

    def look(rollout):
        outcome = rollout.outcome
        if ev.look:
            outcome = measure(measured, agent, streams(len(returns), "evaluate: look"), **cfg.play)
        returns.append(outcome.episode_return.mean(1).view(len(tasks), ev.seeds).numpy(force=True))

    for rollout in learn(agent, env, blocks, cfg, ev.updates + 1, look):  # the last update is for nothing
        steps.append(steps[-1] + rollout.outcome.steps / len(blocks))
    env.close()
    measured.close()
    return np.array(steps[:-1]), np.stack(returns)


LEARNERS = {Config: learn_anew}  # kind of settings -> how evaluate.py learns anew with what such a run has learned
