"""Meta-test: the sub-policies frozen, a new master learns each task."""

import copy
import dataclasses

import numpy as np
import torch

from mlsh.config import Config
from mlsh.envs import find_preset
from mlsh.envs.pool import Stage
from mlsh.models import Hierarchy
from mlsh.ppo import Adam, update
from mlsh.rollout import collect, extended, joined, measure, settle
from mlsh.runs import checkpoint
from mlsh.sampling import Streams, tasks_to_test


def load_agent(data, env):
    """A new agent with the checkpoint's sub-policies and normaliser, for a batched environment of fitting spaces."""
    agent = Hierarchy.build(data["config"], env)
    checkpoint.restore(data, sub_policies=agent.sub_policies, normaliser=agent.normaliser)
    return agent


def transferred(cfg, env):
    """A run's settings for the family named `env`, with its horizon and time between decisions; "": as they are."""
    its = find_preset(env) if env else {}
    taken = {name: its[name] for name in ("T", "high_len") if name in its and hasattr(cfg, name)}
    return dataclasses.replace(cfg, env=env or cfg.env, **taken)


def with_new_masters(agent, groups, seed):
    """The agent with a new master for each of these group indices, and the sub-policies and normaliser it has."""
    agent = agent._replace(master=agent.master.like(len(groups)))
    agent.master.reset(Streams(seed, groups)(0, "test: master"))
    return agent


def as_flat(agent, cfg, n):
    """An agent of one sub-policy (a shared policy) and its Config, as `n` flat policies for `learn` to fine-tune."""
    cfg = dataclasses.replace(
        cfg,
        num_sub_policies=0,
        W=1,
        U=0,
        master_lr=cfg.sub_lr,
        master_minibatch=-(-cfg.N * cfg.T // cfg.sub_minibatches),
    )
    return agent._replace(master=agent.sub_policies.only([0] * n), sub_policies=agent.sub_policies.like(0)), cfg


def learn(agent, env, tasks, cfg, updates, before=lambda rollout: None, groups=None):
    """PPO updates of the agent's masters, one a task of `tasks`; φ and its normaliser stay as they are.

    A flat policy from scratch has no statistics yet; it gets them as in training, but the first env steps do not count.
    `env`: batched, `cfg.N` episodes a task. Calls `before` with a `Rollout` before learning from it, and yields it
    afterwards. `groups`: indices of the tasks, by which they get their random numbers, if they are not all.
    """
    streams = Streams(cfg.seed, groups or range(len(tasks)))
    optimizer = Adam(agent.master, cfg.master_lr)
    env.set_task(tasks)
    flat = not agent.sub_policies.n
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


def adapt(agent, env, tasks, cfg, updates, groups=None):
    """Train a new master for each of `tasks` by `updates` PPO iterations. Arguments as of `learn`.

    Returns the new agent and its env steps.
    """
    agent = with_new_masters(agent, groups or range(len(tasks)), cfg.seed)
    return agent, sum(rollout.outcome.steps for rollout in learn(agent, env, tasks, cfg, updates, groups=groups))


def adapt_all(agent, tasks, stage, updates):
    """As `adapt`, as many tasks at once as the `Stage` bears."""
    cfg, masters, steps = stage.cfg, [], 0
    for some in stage.parts(len(tasks), cfg.N):
        theirs = [tasks[j] for j in some]
        part, taken = adapt(agent, stage.env(cfg.N * len(some), theirs), theirs, cfg, updates, some)
        stage.played(taken)
        masters.append(part.master.state_dict())
        steps += taken
    return agent._replace(master=agent.master.joined(masters)), steps


def play(agent, tasks, stage, purpose):
    """`cfg.test_episodes` episodes of each of `tasks`, one a master, as many at once as the `Stage` bears.

    Returns an `Outcome`.
    """
    cfg, episodes = stage.cfg, stage.cfg.test_episodes
    looks = []
    for i, first in enumerate(range(0, episodes, stage.most)):
        n = min(stage.most, episodes - first)
        played = []
        for some in stage.parts(len(tasks), n):
            env = stage.env(n * len(some), [tasks[j] for j in some])
            part = agent._replace(master=agent.master.only(list(some)))
            played.append(measure(env, part, Streams(cfg.seed, some)(i, purpose), **cfg.play))
            stage.played(n * len(some) * cfg.T)
        looks.append(joined(played))
    return extended(looks)


def stubborn(agent, n):
    """The agent with `n` times K masters, of which each always runs one sub-policy: 0 … K-1, again and again."""
    master = agent.master.like(n * agent.sub_policies.n)  # weights zero: the bias decides
    with torch.no_grad():
        master.policy_bias[:, 0] = 1e3 * torch.eye(agent.sub_policies.n, device=master.policy_bias.device).repeat(n, 1)
    return agent._replace(master=master)


def alone(agent, tasks, stage):
    """Mean return of each sub-policy when it runs all the time, a list [tasks][K], and the env steps taken."""
    K = agent.sub_policies.n
    if not K:
        return [[] for _ in tasks], 0
    played = play(stubborn(agent, len(tasks)), [task for task in tasks for _ in range(K)], stage, "test: alone")
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
    sub-policy, return of each sub-policy alone, mean of what the environment's info has at the last step, the best
    possible return where it is known), and the env steps taken. `env` only tells of the tasks.
    """
    updates, best = cfg.W or cfg.U, env.optimal_returns(cfg.T)
    most = len(tasks) * cfg.T * (cfg.N * updates + cfg.test_episodes * (1 + cfg.num_sub_policies))
    with Stage(cfg, "final test", most) as stage:
        trained, steps = adapt_all(agent, tasks, stage, updates)
        played = play(trained, tasks, stage, "test: play")
        of_subs, alone_steps = alone(agent, tasks, stage)
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
            **({"best_return": best[task]} if best else {}),
        }
        for j, task in enumerate(tasks)
    ]
    return rows, steps + played.steps + alone_steps


def learn_anew(data, cfg, env, tasks, ev):
    """How fast a checkpoint's agent learns: env steps [updates + 1] a task, and measures [updates + 1, tasks, seeds].

    These are a dict of arrays: `return`, and, of what only measures, what the environment reports, as `final_NAME`.
    MLSH trains `ev.seeds` fresh masters a task over frozen sub-policies; a shared policy (num_sub_policies 1) is fine-tuned; a
    run without sub-policies (num_sub_policies 0) is PPO from scratch. The first returns are of the untrained. `ev`: the settings
    of evaluate.py.
    """
    blocks = [task for task in tasks for _ in range(ev.seeds)]
    agent = load_agent(data | {"config": cfg}, env) if cfg.num_sub_policies else Hierarchy.build(cfg, env)
    if cfg.num_sub_policies == 1:
        agent, cfg = as_flat(agent, cfg, len(blocks))
    else:
        agent = with_new_masters(agent, range(len(blocks)), cfg.seed)
    cfg = dataclasses.replace(
        cfg, **{name: x for name in ("N", "master_lr", "master_minibatch") if (x := getattr(ev, name))}
    )
    cfg.validate()
    episodes = cfg.N + ev.look
    with Stage(cfg, "evaluate", len(blocks) * cfg.T * episodes * (ev.updates + 1)) as stage:
        parts = [learn_some(agent, blocks, some, stage, ev) for some in stage.parts(len(blocks), episodes)]
    steps, outcomes = zip(*parts, strict=True)
    return sum(steps) / len(blocks), measures(outcomes, len(tasks), ev.seeds)


def measures(parts, tasks, seeds):
    """`learn_anew`'s, of parts of the learners, which have a list of `Outcome`s each, one an update.

    What is reported after some updates only is NaN after the others.
    """
    updates = [joined(outcomes).means() for outcomes in zip(*parts, strict=True)]
    names, none = dict.fromkeys(name for x in updates for name in x), np.full(tasks * seeds, np.nan)
    return {name: np.stack([x.get(name, none) for x in updates]).reshape(-1, tasks, seeds) for name in names}


def learn_some(agent, blocks, some, stage, ev):
    """`learn_anew` of some of the `blocks` (a task a master): env steps [updates + 1] in all, an `Outcome` an update.

    A normaliser that has to learn, too, begins anew for these.
    """
    cfg, tasks = stage.cfg, [blocks[j] for j in some]
    agent = agent._replace(master=agent.master.only(list(some)), normaliser=copy.deepcopy(agent.normaliser))
    env = stage.env(cfg.N * len(some), tasks)
    streams, outcomes, steps = Streams(ev.seed, some), [], [0]

    def look(rollout):
        outcome = rollout.outcome
        if ev.look:
            measured = stage.env(ev.look * len(some), tasks, "look")
            outcome = measure(measured, agent, streams(len(outcomes), "evaluate: look"), **cfg.play)
        outcomes.append(outcome)

    for rollout in learn(agent, env, tasks, cfg, ev.updates + 1, look, some):  # the last update is for nothing
        steps.append(steps[-1] + rollout.outcome.steps)
        stage.played(len(some) * cfg.T * (cfg.N + ev.look))
    return np.array(steps[:-1]), outcomes


LEARNERS = {Config: learn_anew}  # kind of settings -> how evaluate.py learns anew with what such a run has learned
