"""Meta-test: new masters learn tasks over a run's sub-policies. This is the final test, and what evaluate.py does."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from mlsh.baselines.option_critic import OptionCriticConfig, OptionCriticLearner
from mlsh.baselines.rl2 import RL2Config, RL2Learner
from mlsh.ceiling import of_grid_world
from mlsh.config import Config
from mlsh.envs import find_preset
from mlsh.envs.base import VectorTasks
from mlsh.envs.grid_world import GridWorld
from mlsh.envs.pool import EnvPool
from mlsh.models import ActorCritic, Hierarchy
from mlsh.optim import Adam
from mlsh.outcome import Outcome, concatenate_groups, concatenate_slots
from mlsh.ppo import Batch, update
from mlsh.rollout import VALUES_AT_ONCE, Rollout, collect, evaluate, init_normaliser
from mlsh.runs import checkpoint
from mlsh.sampling import Streams, Task, tasks_to_test
from mlsh.settings import AdaptationSettings, RunSettings

Adapted = list[tuple[Sequence[int], Hierarchy]]  # numbers of tasks, and an agent with a master for each
Measures = dict[str, np.ndarray]  # `return`, and `final_NAME` for what the environment reports -> an array


def load_agent(data: dict[str, Any], env: VectorTasks) -> Hierarchy:
    """A new agent with a checkpoint's sub-policies and normaliser, for a batched environment with the same spaces."""
    agent = Hierarchy.build(data["config"], env)
    checkpoint.restore(data, sub_policies=agent.sub_policies, normaliser=agent.normaliser)
    return agent


def transferred(cfg: RunSettings, env: str) -> Any:
    """A run's settings for another family, with the horizon and the time between decisions of that family's preset.

    If `env` is empty, the settings are returned as they are.
    """
    of_env = find_preset(env) if env else {}
    taken = {name: of_env[name] for name in ("T", "high_len") if name in of_env and hasattr(cfg, name)}
    return dataclasses.replace(cfg, env=env or cfg.env, **taken)


def with_new_masters(agent: Hierarchy, groups: Sequence[int], seed: int) -> Hierarchy:
    """The agent with a new master for each of these group indices; sub-policies and normaliser are the same."""
    agent = agent._replace(master=agent.master.like(len(groups)))
    agent.master.reset(Streams(seed, groups)(0, "test: master"))
    return agent


class Anchor(NamedTuple):
    """What keeps sub-policies that adapt from changing too much."""

    sub_policies: ActorCritic  # the K that they are copies of
    coefficient: float  # of the KL divergence from these, in the loss


class MasterTraining:
    """PPO of an agent's masters, one per task. The normaliser stays as it is, and so do shared sub-policies.

    Where each master has sub-policies of its own, they learn, too. Their loss grows with the KL divergence from those
    of `anchor`, as in Igl et al. (2019). They learn from minibatches of `cfg.master_minibatch` env steps of a task. Its
    rollout is too small for the `sub_minibatches` of training.

    A flat policy that starts from scratch has no normaliser statistics yet, and gets them as in training. The env steps
    of its first statistics are not counted.
    """

    def __init__(
        self,
        agent: Hierarchy,
        env: VectorTasks,
        tasks: Sequence[Task],
        cfg: Config,
        groups: Sequence[int] | None = None,
        anchor: Anchor | None = None,
    ) -> None:
        """`env` has `cfg.N` slots per task. `groups`: the tasks' numbers among all, which select random streams."""
        self._agent, self._env, self._cfg = agent, env, cfg
        self._anchor = anchor
        if anchor:
            minibatches = math.ceil(cfg.N * cfg.T / cfg.master_minibatch)
            changes = {"minibatches": minibatches, "anchor_coef": anchor.coefficient}
            self._sub_ppo = dataclasses.replace(cfg.sub_ppo(cfg.tasks), **changes)
            self._sub_optimizer = Adam(agent.sub_policies, cfg.sub_lr, per_member=True)
        self._streams = Streams(cfg.seed, groups or range(len(tasks)))
        self._optimizer = Adam(agent.master, cfg.master_lr)
        self._flat = not agent.sub_policies.n
        self._updates = 0
        env.set_task(list(tasks))
        if self._flat and not agent.normaliser.count:
            init_normaliser(env, agent, self._streams(0, "test: normaliser"), cfg.rollout)

    def collect(self) -> Rollout:
        self._rngs = self._streams(self._updates, "test: warm-up")
        return collect(self._env, self._agent, self._rngs, self._cfg.rollout, for_sub_policies=self._anchor is not None)

    def learn(self, rollout: Rollout) -> None:
        """Update the masters from the rollout that was collected last."""
        update(self._agent.master, self._optimizer, rollout.master, self._rngs, self._cfg.master_ppo)
        if self._anchor:
            assert rollout.sub_policies is not None
            batch = anchored(rollout.sub_policies, self._anchor.sub_policies)
            update(self._agent.sub_policies, self._sub_optimizer, batch, self._rngs, self._sub_ppo)
        if self._flat:
            self._agent.normaliser.update(rollout.obs)
        self._updates += 1


@torch.no_grad()
def anchored(batch: Batch, anchor: ActorCritic) -> Batch:
    """The batch of copies of the `anchor`'s sub-policies, with the params that these have at its observations."""
    parts = zip((batch.member % anchor.n).split(VALUES_AT_ONCE), batch.obs.split(VALUES_AT_ONCE), strict=True)
    return batch._replace(anchor=torch.cat([anchor.params_of(member)(obs) for member, obs in parts]))


def adapt(
    agent: Hierarchy,
    env: VectorTasks,
    tasks: Sequence[Task],
    cfg: Config,
    updates: int,
    groups: Sequence[int] | None = None,
) -> tuple[Hierarchy, int]:
    """Train a new master for each task by so many PPO updates. Arguments as for `MasterTraining`.

    Returns the agent with these masters, and the env steps taken. The given agent does not change.
    """
    agent = with_new_masters(agent, groups or range(len(tasks)), cfg.seed)
    agent = agent._replace(normaliser=agent.normaliser.copy())  # that of flat policies learns
    training = MasterTraining(agent, env, tasks, cfg, groups)
    env_steps = 0
    for _ in range(updates):
        rollout = training.collect()
        training.learn(rollout)
        env_steps += rollout.outcome.steps
    return agent, env_steps


# The final test


def final_test(agent: Hierarchy, env: VectorTasks, cfg: Config) -> dict[str, Any]:
    """What goes to results.json: the env steps taken, a table of the env's tasks, and one of its held-out tasks."""
    tables: dict[str, Any] = {}
    env_steps = 0
    for name in ("test", "held_out"):
        if tasks := tasks_to_test(env, cfg.seed, held_out=name == "held_out"):
            tables[name], taken = test_tasks(agent, env, tasks, cfg)
            env_steps += taken
    return {"test_env_steps": env_steps, **tables}


def test_tasks(
    agent: Hierarchy, env: VectorTasks, tasks: Sequence[Task], cfg: Config
) -> tuple[list[dict[str, Any]], int]:
    """Train a new master on each task by W updates (without a warm-up, U), then play `cfg.test_episodes`.

    Returns one row per task, and the env steps taken. A row holds the task and its label, the mean return and its
    standard error, each sub-policy's share of the env steps, the return of each sub-policy alone, the means of what the
    environment reported in the last steps, and where they are known the best possible return, and the best one of a
    master over these sub-policies. `env` itself is not played.
    """
    updates, best = cfg.W or cfg.U, env.optimal_returns(cfg.T)
    episodes = cfg.N * updates + cfg.test_episodes * (1 + cfg.num_sub_policies)
    with EnvPool(cfg, "final test", len(tasks) * cfg.T * episodes) as pool:
        adapted, adapting = adapt_in_chunks(agent, tasks, pool, updates)
        outcome = evaluate_masters(adapted, tasks, pool, "test: play")
        returns_alone, alone = evaluate_each_sub_policy(agent, tasks, pool)
    returns, final = outcome.episode_return.double(), outcome.final_means()  # [tasks, episodes]
    over_these = of_grid_world(agent, env, cfg, tasks) if agent.K and isinstance(env, GridWorld) else None
    rows = [
        {
            "task": task,
            "label": env.task_label(task),
            "return": returns[j].mean().item(),
            "standard_error": returns[j].std().item() / cfg.test_episodes**0.5,
            "share": [round(x, 4) for x in outcome.share[j].tolist()],
            "sub_policy_returns": [round(x, 4) for x in returns_alone[j]],
            **{name: means[j] for name, means in final.items()},
            **({"best_return": best[task]} if best else {}),
            **({"best_master": over_these[j]} if over_these else {}),
        }
        for j, task in enumerate(tasks)
    ]
    return rows, adapting + outcome.steps + alone


def adapt_in_chunks(agent: Hierarchy, tasks: Sequence[Task], pool: EnvPool, updates: int) -> tuple[Adapted, int]:
    """Adapt to each task, as many at a time as the pool allows. Returns the agents, and the env steps taken."""
    cfg, adapted, env_steps = pool.cfg, [], 0
    for chunk in pool.chunks(len(tasks), cfg.N):
        chosen = [tasks[j] for j in chunk]
        trained, taken = adapt(agent, pool.env(cfg.N * len(chunk), chosen), chosen, cfg, updates, chunk)
        pool.advance(taken)
        adapted.append((chunk, trained))
        env_steps += taken
    return adapted, env_steps


def evaluate_masters(adapted: Adapted, tasks: Sequence[Task], pool: EnvPool, purpose: str) -> Outcome:
    """Play `cfg.test_episodes` evaluation episodes per task, one master each, as many at a time as the pool allows."""
    cfg, outcomes = pool.cfg, []
    for i, first in enumerate(range(0, cfg.test_episodes, pool.slots_at_once)):
        episodes = min(pool.slots_at_once, cfg.test_episodes - first)
        of_chunks = []
        for numbers, agent in adapted:
            for chunk in pool.chunks(len(numbers), episodes):
                chosen = [numbers[j] for j in chunk]
                env = pool.env(episodes * len(chunk), [tasks[j] for j in chosen])
                part = agent._replace(master=agent.master.copies_of(chunk))
                of_chunks.append(evaluate(env, part, Streams(cfg.seed, chosen)(i, purpose), cfg.rollout))
                pool.advance(episodes * len(chunk) * cfg.T)
        outcomes.append(concatenate_groups(of_chunks))
    return concatenate_slots(outcomes)


def with_constant_masters(agent: Hierarchy, times: int) -> Hierarchy:
    """The agent with `times` · K masters, each of which always chooses one sub-policy: 0 … K − 1, again and again."""
    K = agent.sub_policies.n
    master = agent.master.like(times * K)  # its weights are zero, so the bias decides
    with torch.no_grad():
        master.policy_bias[:, 0] = 1e3 * torch.eye(K, device=master.device).repeat(times, 1)
    return agent._replace(master=master)


def evaluate_each_sub_policy(agent: Hierarchy, tasks: Sequence[Task], pool: EnvPool) -> tuple[list[list[float]], int]:
    """The mean return of each sub-policy when it runs all the time, [tasks][K], and the env steps taken."""
    K = agent.sub_policies.n
    if not K:
        return [[] for _ in tasks], 0
    each_k_times = [task for task in tasks for _ in range(K)]
    constant: Adapted = [(range(len(tasks) * K), with_constant_masters(agent, len(tasks)))]
    outcome = evaluate_masters(constant, each_k_times, pool, "test: alone")
    return outcome.episode_return.mean(1).view(len(tasks), K).tolist(), outcome.steps


# Adaptation curves: how fast tasks are learned with what a run has learned


class Learner(Protocol):
    """Learns tasks with what a run has learned, one independent learner per task and seed."""

    cfg: Any  # the settings that it learns with
    slots: int  # per learner
    env_steps: int  # per learner, at most

    def learn(self, tasks: list[Task], chunk: range, pool: EnvPool) -> tuple[np.ndarray, list[Outcome]]:
        """Learn each task with the learner of that number in `chunk`.

        Returns the env steps of all these learners together before each evaluation [updates + 1], and its `Outcome`.
        """
        ...


class MasterLearner:
    """Trains new masters over the sub-policies of an MLSH run. With a finite `sub_kl` copies of these learn, too.

    A run with a single, shared policy (K = 1) is fine-tuned instead, and one without sub-policies (K = 0) is PPO from
    scratch.
    """

    def __init__(
        self, data: dict[str, Any], cfg: Config, env: VectorTasks, learners: int, settings: AdaptationSettings
    ) -> None:
        given = settings.given(
            "N", "high_len", "master_sees", "master_gamma", "master_lr", "master_minibatch", "sub_lr"
        )
        cfg = dataclasses.replace(cfg, **given)
        agent = load_agent(data | {"config": cfg}, env) if cfg.num_sub_policies else Hierarchy.build(cfg, env)
        if cfg.num_sub_policies == 1:
            agent, cfg = as_flat(agent, cfg, learners)
        else:
            agent = with_new_masters(agent, range(learners), cfg.seed)
        self._agent, self._settings = agent, settings
        self.cfg = dataclasses.replace(cfg, **given)
        self.cfg.validate()
        self.slots = self.cfg.N + settings.eval_episodes
        self.env_steps = self.cfg.T * self.slots * (settings.updates + 1)

    def learn(self, tasks: list[Task], chunk: range, pool: EnvPool) -> tuple[np.ndarray, list[Outcome]]:
        cfg, settings = self.cfg, self._settings
        masters, normaliser = self._agent.master.copies_of(chunk), self._agent.normaliser.copy()
        agent, anchor = self._agent._replace(master=masters, normaliser=normaliser), None
        if agent.K and settings.sub_kl < math.inf:
            cfg = dataclasses.replace(cfg, sub_lr=settings.sub_lr or cfg.sub_lr_at(cfg.tasks - 1))
            anchor = Anchor(agent.sub_policies, settings.sub_kl)
            copies = agent.sub_policies.copies_of([*range(agent.K)] * len(tasks))
            agent = agent._replace(sub_policies=copies)
        training = MasterTraining(agent, pool.env(cfg.N * len(tasks), tasks), tasks, cfg, chunk, anchor)
        streams, outcomes, env_steps = Streams(settings.seed, chunk), [], [0]
        for i in range(settings.updates + 1):
            rollout = training.collect()
            outcome = rollout.outcome
            env_steps.append(env_steps[-1] + outcome.steps)
            if settings.eval_episodes:
                env = pool.env(settings.eval_episodes * len(tasks), tasks, "evaluate")
                rngs = streams(i, "evaluate: look")  # the name is part of the random numbers
                outcome = evaluate(env, agent, rngs, cfg.rollout)
            outcomes.append(outcome)
            if i < settings.updates:
                training.learn(rollout)
            pool.advance(len(tasks) * cfg.T * self.slots)
        return np.array(env_steps[:-1]), outcomes


def as_flat(agent: Hierarchy, cfg: Config, copies: int) -> tuple[Hierarchy, Config]:
    """An agent with a single, shared sub-policy as so many flat policies for fine-tuning, and their settings."""
    minibatch = math.ceil(cfg.N * cfg.T / cfg.sub_minibatches)
    cfg = dataclasses.replace(cfg, num_sub_policies=0, W=1, U=0, master_lr=cfg.sub_lr, master_minibatch=minibatch)
    master = agent.sub_policies.copies_of([0] * copies)
    return agent._replace(master=master, sub_policies=agent.sub_policies.like(0)), cfg


LEARNERS: dict[type, Callable[..., Learner]] = {
    Config: MasterLearner,
    RL2Config: RL2Learner,
    OptionCriticConfig: OptionCriticLearner,
}


def adaptation_curves(
    data: dict[str, Any], cfg: RunSettings, env: VectorTasks, tasks: Sequence[Task], settings: AdaptationSettings
) -> tuple[np.ndarray, Measures]:
    """How fast `settings.seeds` learners per task learn with a checkpoint's networks.

    Returns the env steps per learner [updates + 1], and arrays [updates + 1, tasks, seeds] by name. The first values
    are those before any update. `env` provides the spaces.
    """
    task_of_learner = [task for task in tasks for _ in range(settings.seeds)]
    learner = LEARNERS[type(cfg)](data, cfg, env, len(task_of_learner), settings)
    with EnvPool(learner.cfg, "evaluate", len(task_of_learner) * learner.env_steps) as pool:
        chunks = [
            learner.learn([task_of_learner[j] for j in chunk], chunk, pool)
            for chunk in pool.chunks(len(task_of_learner), learner.slots)
        ]
    env_steps = sum((steps for steps, _ in chunks), np.zeros(1)) / len(task_of_learner)
    return env_steps, measures((outcomes for _, outcomes in chunks), len(tasks), settings.seeds)


def measures(outcomes_of_chunks: Iterable[Sequence[Outcome]], tasks: int, seeds: int) -> Measures:
    """Arrays [updates + 1, tasks, seeds] by name, from one `Outcome` per update of each chunk of learners.

    A number that is reported after some updates only is NaN after the others.
    """
    updates = [concatenate_groups(outcomes).means() for outcomes in zip(*outcomes_of_chunks, strict=True)]
    names, missing = dict.fromkeys(name for x in updates for name in x), np.full(tasks * seeds, np.nan)
    return {name: np.stack([x.get(name, missing) for x in updates]).reshape(-1, tasks, seeds) for name in names}
