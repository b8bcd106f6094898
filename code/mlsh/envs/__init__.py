"""The task families, registered with Gymnasium on import."""

import functools
import importlib
import inspect
import json

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from mlsh.envs.base import VectorTasks
from mlsh.envs.gymnasium_tasks import GymnasiumTasks
from mlsh.errors import RenderingUnavailable, UserError

IDS = ("MovementBandits-v0", "MovementBandits4-v0", "AntBandits-v1")

for goals, env_id in ((2, "MovementBandits-v0"), (4, "MovementBandits4-v0")):
    gym.register(
        env_id,
        entry_point="mlsh.envs.movement_bandits:MovementBandits",
        vector_entry_point="mlsh.envs.movement_bandits:MovementBanditsVector",
        max_episode_steps=50,
        kwargs={"num_goals": goals},
    )
gym.register(
    "AntBandits-v1",
    entry_point="mlsh.envs.ant_bandits:AntBandits",
    vector_entry_point="mlsh.envs.ant_bandits:AntBanditsVector",
    max_episode_steps=1000,
)


def find_class(cfg):
    """The batched class of the family that a Config names, or None if it has only a single environment."""
    try:
        module, _, env_id = cfg.env.rpartition(":")
        if module:
            importlib.import_module(module)
        creator = gym.spec(env_id).vector_entry_point
        if isinstance(creator, str):
            creator = load_env_creator(creator)
    except Exception as error:  # an imported module may raise anything
        reason = " ".join(str(error).split())
        raise UserError(f"--env {cfg.env} is unknown ({reason}); the package's own are {', '.join(IDS)}") from None
    return creator if inspect.isclass(creator) and issubclass(creator, VectorTasks) else None


def most_episodes(cfg):
    """How many episodes of the family a process should hold at once."""
    return 10_000 if find_class(cfg) else 100


def make_env(cfg, num_envs, render_mode=None):
    """The batched environment that a Config names: `num_envs` episodes of `cfg.T` steps, on `cfg.device`.

    A family without a batched class (a `VectorTasks`) is stepped one by one.
    Raises UserError if there is no such environment, or if it has no task distribution.
    """
    creator, env_id = find_class(cfg), cfg.env.rpartition(":")[-1]
    if creator is None:
        make = functools.partial(gym.make, env_id, disable_env_checker=True)
        try:
            return GymnasiumTasks(make, num_envs, cfg.T, render_mode, cfg.device)
        except RenderingUnavailable:
            raise
        except Exception as error:  # of the environment's own making, too
            raise UserError(f"--env {cfg.env}: {' '.join(str(error).split())}") from None
    known = inspect.signature(creator).parameters
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


def find_task(env, text, flag):
    """The batched environment's task that `flag` names by `text`: a number 0 … n-1 in a finite family, else JSON."""
    family = env.train_tasks
    try:
        return json.loads(text) if family is None else {str(task): task for task in family}[text]
    except (KeyError, json.JSONDecodeError):
        known = "JSON" if family is None else ", ".join(map(str, family))
        raise UserError(f"{flag} is {text}: use {known}") from None
