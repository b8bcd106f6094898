"""The registered task families, and how `--env` names are turned into batched environments."""

import contextlib
import functools
import inspect
import math
import sys
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator

from mlsh.envs.base import SingleEnv, VectorTasks
from mlsh.envs.boundary import restored_settings, restored_signals
from mlsh.envs.gymnasium_tasks import GymnasiumTasks
from mlsh.envs.memory import available_memory
from mlsh.envs.modules import import_checked
from mlsh.envs.protocols import seeded_global_generators
from mlsh.errors import EnvironmentFailed, RenderingUnavailable, UserError

ALWAYS_FITS = 1_000_000  # env steps: a rollout of so many fits into memory, whatever its observations
# How often a rollout's observations are held: stacked, normalised, for the sub-policies, for the normaliser.
# Images are held once.
OBSERVATION_COPIES = 4
OTHER_BYTES = 64  # per env step: actions, rewards and the like
PRESETS: dict[str, dict[str, Any]] = {}  # id of a registered family -> its settings
BEST_RETURNS: dict[str, float | None] = {}  # id -> the best possible mean return, or None if it is unknown


class EnvSettings(Protocol):
    """The settings that `make_env` reads; each class of run settings has them."""

    env: str
    T: int
    device: str
    sim_threads: int
    copies: int

    @property
    def env_processes(self) -> int | None: ...


def register(
    env_id: str,
    single: type[SingleEnv],
    max_episode_steps: int,
    preset: dict[str, Any],
    best_return: float | None = None,
    **kwargs: Any,
) -> None:
    """Register a family with Gymnasium: its single and its batched environment under one id, and its preset.

    Args:
        env_id: The Gymnasium id.
        single: The single environment; its `vector_class` is the batched one.
        max_episode_steps: The time limit of an episode.
        preset: Settings (fields of `config.Config`) that work well for the family. The others keep their defaults.
        best_return: The best possible mean return in training, if it is known.
        kwargs: Arguments of both constructors.
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


def env_ids() -> tuple[str, ...]:
    """Return the Gymnasium ids of the families that this package registers."""
    return tuple(PRESETS)


def find_id(env: str) -> str:
    """Return the Gymnasium id in `module:Id-v0`, after importing the module.

    Raises UserError if the import fails or there is no such environment.
    """
    module, _, env_id = env.rpartition(":")
    if module and module not in sys.modules:
        import_module(module, env)
    try:
        gym.spec(env_id)
    except gym.error.Error as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--env {env} is unknown ({reason}); this package registers {', '.join(PRESETS)}") from None
    return env_id


def import_module(module: str, env: str) -> None:
    """Import the module that `--env` names. Raises UserError if it fails."""
    top = module.split(".")[0]
    try:
        with restored_settings(), restored_signals(), seeded_global_generators(0):  # the module may draw its tasks
            import_checked(module, env)
    except UserError:
        raise
    except BaseException as error:  # the module may raise anything
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and (module == missing or module.startswith(f"{missing}.")):
            here = [path for path in (Path(f"{top}.py"), Path(top)) if path.exists()]
            remedy = f"; {here[0]} is in the current folder: set PYTHONPATH=. to import from it" if here else ""
            raise UserError(f"--env {env} is unknown (No module named {missing!r}){remedy}") from None
        raise UserError(f"--env {env}: {EnvironmentFailed.from_exception('at its import', error)}") from None


def find_preset(env: str) -> dict[str, Any]:
    """Return the preset of the family named `env`. If it sets no T, T is the time limit of the environment itself."""
    env_id = find_id(env)
    limit: Any = gym.spec(env_id).max_episode_steps  # Gymnasium does not check what it is
    has_limit = isinstance(limit, (int, float, np.integer)) and 1 <= limit < 2**63
    return ({"T": int(limit)} if has_limit else {}) | PRESETS.get(env_id, {})


def has_preset(env: str) -> bool:
    """Return whether the family named `env` was registered with a preset."""
    return find_id(env) in PRESETS


def best_return(env: str) -> float | None:
    """Return the best possible mean return in the family named `env`, or None if it is unknown."""
    return BEST_RETURNS.get(env.split(":")[-1])


def find_class(env: str) -> type[VectorTasks] | None:
    """Return the batched class of the family named `env`, or None if it has only a single environment."""
    creator: Any = gym.spec(find_id(env)).vector_entry_point
    if isinstance(creator, str):
        creator = load_env_creator(creator)
    return creator if inspect.isclass(creator) and issubclass(creator, VectorTasks) else None


def max_parallel_episodes(cfg: EnvSettings) -> int:
    """Return how many episodes a process should play side by side in tests, where the number is free."""
    return 10_000 if find_class(cfg.env) else cfg.copies


def check_memory(cfg: EnvSettings, num_envs: int) -> None:
    """Check that a rollout of `num_envs` episodes fits into memory; otherwise the kernel would kill the process.

    The estimate is a lower bound, so that nothing is refused that would fit. Raises UserError if it does not fit.
    """
    steps = num_envs * cfg.T
    if steps <= ALWAYS_FITS:
        return
    with contextlib.closing(_build_env(cfg, 1)) as env:
        shape, dtype = env.single_observation_space.shape or (), env.single_observation_space.dtype
    copies = 1 if len(shape) == 3 else OBSERVATION_COPIES
    item_bytes = min(4, dtype.itemsize if dtype else 4)  # larger types are converted to float32
    needed = steps * (copies * math.prod(shape) * item_bytes + OTHER_BYTES)
    if needed > available_memory():
        raise UserError(
            f"{num_envs:,} episodes of {cfg.T:,} steps need {needed / 1e9:,.0f} GB of memory or more, but only "
            f"{available_memory() / 1e9:,.0f} GB are available; use smaller -N, -T, --groups or --test_episodes "
            "(of evaluate.py -N, --eval_episodes, --seeds or --sample)"
        )


def make_env(cfg: EnvSettings, num_envs: int, render_mode: str | None = None) -> VectorTasks:
    """Make the batched environment that `cfg.env` names: `num_envs` episodes of `cfg.T` steps, on `cfg.device`.

    An environment without a batched class (a `VectorTasks`) is wrapped in `GymnasiumTasks`. Raises UserError if there
    is no such environment, if it has no task distribution, or if a rollout does not fit into memory;
    RenderingUnavailable if it cannot render in `render_mode`.
    """
    check_memory(cfg, num_envs)
    return _build_env(cfg, num_envs, render_mode)


def make_single(env: str, **kwargs: Any) -> gym.Env:
    """Make one copy of the environment named `env`."""
    return gym.make(find_id(env), disable_env_checker=True, **kwargs)


def _build_env(cfg: EnvSettings, num_envs: int, render_mode: str | None = None) -> VectorTasks:
    env_id, batched = find_id(cfg.env), find_class(cfg.env)
    if batched is None:
        make = functools.partial(make_single, cfg.env)
        try:
            with restored_settings(), restored_signals():
                return GymnasiumTasks(make, num_envs, cfg.T, render_mode, cfg.device, cfg.env_processes)
        except RenderingUnavailable:
            raise
        except BaseException as error:  # includes those that the environment itself raises
            reason = error if isinstance(error, UserError) else EnvironmentFailed.from_exception("at its start", error)
            raise UserError(f"--env {cfg.env}: {reason}") from None
    takes_threads = "sim_threads" in inspect.signature(batched).parameters
    threads: dict[str, Any] = {"sim_threads": cfg.sim_threads} if takes_threads else {}
    env = gym.make_vec(
        env_id,
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        max_episode_steps=cfg.T,
        render_mode=render_mode,
        device=cfg.device,
        **threads,
    )
    assert isinstance(env, VectorTasks)
    return env
