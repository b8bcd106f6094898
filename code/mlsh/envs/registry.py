"""Which task families there are, and the batched environment of the one that --env names."""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import math

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from mlsh.envs.base import VectorTasks
from mlsh.envs.gymnasium_tasks import GymnasiumTasks
from mlsh.envs.memory import available
from mlsh.errors import EnvironmentFailed, RenderingUnavailable, UserError

HARMLESS = 1_000_000  # env steps in a rollout, whatever is observed
COPIES = 4  # of a rollout's observations: stacked, normalised, for the sub-policies, for the normaliser; of images one
PRESETS = {}  # id of a family registered here -> its settings
BEST_RETURNS = {}  # id -> the best possible mean return, where it is known


def register(env_id, single, max_episode_steps, preset, best_return=None, **kwargs):
    """Register a family with Gymnasium, under one id its single and its batched environment, and its preset.

    `single`: a subclass of `SingleEnv`. `preset`: the settings (fields of `config.Config`) that are good for it; the
    others have their defaults. `best_return`: the best possible mean return, if it is known. `kwargs`: of the
    environments' constructors.
    """
    batched = single.vector_class
    gym.register(
        env_id,
        entry_point=f"{single.__module__}:{single.__name__}",
        vector_entry_point=f"{batched.__module__}:{batched.__name__}",
        max_episode_steps=max_episode_steps,
        kwargs=kwargs,
    )
    PRESETS[env_id], BEST_RETURNS[env_id] = preset, best_return


def ids():
    """The Gymnasium ids of the package's own families."""
    return tuple(PRESETS)


def find_id(env):
    """The Gymnasium id in `module:Id-v0`, its module imported. Raises UserError if there is no such environment."""
    module, _, env_id = env.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        gym.spec(env_id)
    except Exception as error:  # an imported module may raise anything
        if not isinstance(error, (gym.error.Error, ModuleNotFoundError)):
            raise UserError(f"--env {env}: {EnvironmentFailed.from_exception('at its import', error)}") from None
        reason = " ".join(str(error).split())
        raise UserError(f"--env {env} is unknown ({reason}); the package's own are {', '.join(PRESETS)}") from None
    return env_id


def preset(env):
    """The settings that the family named `env` was registered with, and, as T, its own limit, if it has one."""
    env_id = find_id(env)
    limit = gym.spec(env_id).max_episode_steps
    return ({"T": limit} if limit else {}) | PRESETS.get(env_id, {})


def best_return(env):
    """The best possible mean return in the family named `env`, or None where it is not known."""
    return BEST_RETURNS.get(env.split(":")[-1])


def find_class(env):
    """The batched class of the family named `env`, or None if it has only a single environment."""
    creator = gym.spec(find_id(env)).vector_entry_point
    if isinstance(creator, str):
        creator = load_env_creator(creator)
    return creator if inspect.isclass(creator) and issubclass(creator, VectorTasks) else None


def most_episodes(cfg):
    """How many episodes of the family a process should hold at once, where it may choose."""
    return 10_000 if find_class(cfg.env) else cfg.copies


def refuse_too_large(cfg, num_envs):
    """Raise a UserError if a rollout of so many episodes cannot fit into memory, before the kernel ends the process.

    The estimate is low, so that nothing is refused that would do.
    """
    steps = num_envs * cfg.T
    if steps <= HARMLESS:
        return
    with contextlib.closing(make_env(dataclasses.replace(cfg, T=1), 1)) as one:
        space = one.single_observation_space
        copies = 1 if len(space.shape) == 3 else COPIES
        wanted = steps * (copies * math.prod(space.shape) * min(4, space.dtype.itemsize) + 64)  # and actions, rewards …
    if wanted > available():
        raise UserError(
            f"{num_envs:,} episodes of {cfg.T:,} steps at once want {wanted / 1e9:,.0f} GB of memory or "
            f"more, and there are {available() / 1e9:,.0f}; use smaller -N, -T, --groups or --test_episodes "
            "(of evaluate.py -N, --eval_episodes, --seeds or --sample)"
        )


def make_env(cfg, num_envs, render_mode=None):
    """The batched environment that a Config names: `num_envs` episodes of `cfg.T` steps, on `cfg.device`.

    A family without a batched class (a `VectorTasks`) is stepped one by one.
    Raises UserError if there is no such environment, if it has no task distribution, or if a rollout cannot fit.
    """
    refuse_too_large(cfg, num_envs)
    env_id, batched = find_id(cfg.env), find_class(cfg.env)
    if batched is None:
        make = functools.partial(gym.make, env_id, disable_env_checker=True)
        try:
            return GymnasiumTasks(make, num_envs, cfg.T, render_mode, cfg.device)
        except RenderingUnavailable:
            raise
        except Exception as error:  # of the environment's own making, too
            reason = error if isinstance(error, UserError) else EnvironmentFailed.from_exception("at its start", error)
            raise UserError(f"--env {cfg.env}: {reason}") from None
    known = inspect.signature(batched).parameters
    threads = {"sim_threads": cfg.sim_threads} if "sim_threads" in known else {}
    return gym.make_vec(
        env_id,
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        max_episode_steps=cfg.T,
        render_mode=render_mode,
        device=cfg.device,
        **threads,
    )
