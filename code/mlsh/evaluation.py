"""How the return on a task grows with env steps, the sub-policies frozen: MLSH's masters and the baselines."""

import dataclasses

import numpy as np

from mlsh import checkpoint, rl2
from mlsh.adapt import as_flat, learn, with_new_masters
from mlsh.config import Config, RL2Config
from mlsh.envs import find_task, make_env
from mlsh.rollout import collect, streams

KINDS = (Config, RL2Config)  # of runs that can be evaluated


def evaluate(run, ev):
    """Learn the tasks anew from a run folder or checkpoint, as the `EvaluationConfig` ev says.

    MLSH trains a fresh master over frozen sub-policies; a shared policy (num_low 1) is fine-tuned; a run without
    sub-policies (num_low 0) is PPO from scratch; an RL² policy plays on, an episode in place of an update. Returns env
    steps [updates + 1] on a task, returns [updates + 1, tasks, seeds] from the untrained on, and the tasks' labels.
    """
    data = checkpoint.load(run, KINDS)
    cfg = dataclasses.replace(data["config"], seed=ev.seed, device=ev.device, sim_threads=ev.sim_threads)
    cfg.env = ev.env or cfg.env
    env = make_env(cfg, 1)
    tasks = [find_task(env, text, "--tasks") for text in ev.tasks] or env.train_tasks
    if tasks is None:
        tasks = [env.sample_task(rng) for rng in streams(ev.seed, 0, "evaluate: task", range(ev.sample))]
    tasks = list({str(task): task for task in tasks}.values())  # each once
    labels = [f"task {task} ({env.task_label(task)})" for task in tasks]
    method = learn_anew if isinstance(cfg, Config) else play_on
    steps, returns = method(data, cfg, env, tasks, ev)
    return steps, returns, labels


def learn_anew(data, cfg, env, tasks, ev):
    blocks = [task for task in tasks for _ in range(ev.seeds)]
    agent = checkpoint.agent_of(data | {"config": cfg}, env)
    if cfg.num_low == 1:
        agent, cfg = as_flat(agent, cfg, len(blocks))
    else:
        agent = with_new_masters(agent, len(blocks), cfg.seed)
    cfg = dataclasses.replace(cfg, **{name: x for name in ("N", "hlr", "bs") if (x := getattr(ev, name))})
    cfg.validate()
    env = make_env(cfg, cfg.N * len(blocks))
    measured = env if not ev.look else make_env(cfg, ev.look * len(blocks))
    measured.set_task(blocks)
    returns, steps = [], [0.0]

    def look(rollout):
        if ev.look:
            rngs = streams(ev.seed, len(returns), "evaluate: look", range(len(blocks)))
            rollout = collect(measured, agent, rngs, low=False, **cfg.rollout)
        returns.append(rollout.episode_return.mean(1).view(len(tasks), ev.seeds).numpy(force=True))

    for rollout in learn(agent, env, blocks, cfg, ev.updates + 1, look):  # the last update is for nothing
        steps.append(steps[-1] + rollout.steps / len(blocks))
    env.close()
    measured.close()
    return np.array(steps[:-1]), np.stack(returns)


def play_on(data, cfg, env, tasks, ev):
    policy = rl2.build(cfg, env)
    checkpoint.restore(data | {"config": cfg}, policy=policy)
    trials_a_seed = ev.N or 10
    env = make_env(cfg, len(tasks) * ev.seeds * trials_a_seed)
    env.set_task(tasks)
    (rng,) = streams(ev.seed, 0, "evaluate: rl2", [0])
    trials = rl2.play(env, policy, rng, **cfg.trial)
    env.close()
    returns = trials.episode_return.view(cfg.episodes, len(tasks), ev.seeds, trials_a_seed).mean(-1)
    steps = trials.steps / (env.num_envs * cfg.episodes)
    return np.arange(cfg.episodes) * steps, returns.numpy(force=True)


def steps_to(part, steps, returns):
    """The first env steps at which the mean over seeds of returns [n, seeds] is as good as `part` of its last value.

    "95 % of −0.1" is −0.105: what is missing is measured by the size of the last value.
    """
    mean = returns.mean(1)
    return steps[(mean >= mean[-1] - (1 - part) * abs(mean[-1])).argmax()]
