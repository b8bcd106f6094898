"""Use what a run has learned: frozen sub-policies on NumPy observations, and as the actions of an environment."""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, Tuple, flatten
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, iterate

from mlsh.config import Config
from mlsh.envs import find_id
from mlsh.envs.base import SingleEnv, VectorTasks
from mlsh.envs.gymnasium_tasks import ActionMap, flat_space
from mlsh.errors import UserError
from mlsh.models import ActorCritic, Hierarchy
from mlsh.runs import checkpoint


@dataclass
class PolicySpaces:
    """The spaces of the policies, which see flat observations."""

    single_observation_space: gym.Space[Any]
    single_action_space: gym.Space[Any]


def spaces_of(env: gym.Env[Any, Any] | VectorTasks) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """Return the spaces of an observation and of an action."""
    if isinstance(env, VectorTasks):
        return env.single_observation_space, env.single_action_space
    return env.observation_space, env.action_space


class Agent:
    """The frozen sub-policies of a run. `load` makes it.

    Attributes:
        observation_space, action_space: The spaces of the environment.
        config: The settings of the run.
        sub_policies: The K networks, a `mlsh.models.ActorCritic`; K is `sub_policies.n`.
    """

    def __init__(self, data: dict[str, Any], env: gym.Env[Any, Any] | VectorTasks) -> None:
        """`data` is what `checkpoint.load` returns. `env` only provides the spaces."""
        self.config: Config = data["config"]
        self.observation_space, self.action_space = spaces_of(env)
        self._rng = np.random.default_rng()
        # as in training, actions for the package's own families are neither mapped nor clipped
        own = isinstance(env, VectorTasks) or isinstance(env.unwrapped, SingleEnv)
        self._native_actions = None if own else ActionMap(self.action_space)
        spaces = PolicySpaces(
            flat_space(self.observation_space),
            self._native_actions.policy_space if self._native_actions else self.action_space,
        )
        agent = Hierarchy.build(self.config, spaces)
        checkpoint.restore(data, sub_policies=agent.sub_policies, normaliser=agent.normaliser)
        self.sub_policies: ActorCritic = agent.sub_policies
        self._normalise = agent.normaliser.frozen()

    @torch.no_grad()
    def act(
        self,
        obs: Any,
        sub_policy: int | np.ndarray,
        deterministic: bool = False,
        rng: np.random.Generator | None = None,
    ) -> Any:
        """The action of a sub-policy at an observation, or the actions at a batch of observations.

        Args:
            obs: An element of `observation_space`, or a batch of B elements as vector environments return it.
            sub_policy: 0 … K − 1. For a batch also an array [B], one sub-policy per observation.
            deterministic: Return the most likely action instead of a sample.
            rng: Generator for sampling. Default: one of the agent's own, which is seeded differently in every process.

        Returns:
            An element of `action_space`, or a batch of them. In the families of this package, a sampled torque may lie
            outside the space, as in training; the environment clips it.

        Raises ValueError for an observation of another shape, and for a sub-policy that does not exist.
        """
        rows, batched = self._flat(obs)
        K, B = self.sub_policies.n, len(rows)
        chosen = np.broadcast_to(np.asarray(sub_policy), B)
        if not np.isin(chosen, np.arange(K)).all():
            raise ValueError(f"sub_policy is {sub_policy}; use 0 to {K - 1}")
        noise = np.zeros((B, self.sub_policies.action_size), np.float32)
        if not deterministic:
            noise = self.sub_policies.noise(rng or self._rng, B)
        device = self.sub_policies.device
        x, z, noise_tensor = (torch.from_numpy(x).to(device) for x in (rows, chosen.astype(np.int64), noise))
        params = self.sub_policies.params_of(z)(self._normalise(x))
        actions = self.sub_policies.sample(params, noise_tensor).cpu().numpy()
        native = np.asarray(self._native_actions(actions) if self._native_actions else actions)
        return native if batched else native[0]

    def normalise(self, obs: Any) -> np.ndarray:
        """Observations as MLSH's policies see them: vectors scaled as in training, float32 [size] or [B, size]."""
        rows, batched = self._flat(obs)
        scaled = self._normalise(torch.from_numpy(rows).to(self.sub_policies.device)).cpu().numpy()
        return scaled if batched else scaled[0]

    def _flat(self, obs: Any) -> tuple[np.ndarray, bool]:
        """Observations as float32 [B, size], and whether they were given as a batch."""
        space = self.observation_space
        shape = space.shape if isinstance(space, Box) else None
        if shape is not None:
            x = np.asarray(obs, np.float32)
            if x.shape not in (shape, (len(x) if x.ndim else 0, *shape)):
                raise ValueError(
                    f"obs has shape {x.shape}; use {shape}, or (B, {', '.join(map(str, shape))}) for a batch"
                )
            return x.reshape(-1, math.prod(shape)), x.shape != shape
        leaf, x = space, obs
        while isinstance(leaf, (Dict, Tuple)):  # an environment may return the keys in another order than the space
            key: Any = next(iter(leaf)) if isinstance(leaf, Dict) else 0
            leaf, x = leaf[key], x[key]
        batched = np.ndim(x) > len(leaf.shape or ())
        items = iterate(batch_space(space, len(x)), obs) if batched else [obs]
        return np.stack([np.asarray(flatten(space, item), np.float32) for item in items]), batched


def load(run: Path | str, env: gym.Env[Any, Any] | VectorTasks | None = None, device: str = "cpu") -> Agent:
    """Load the sub-policies of a run of train.py.

    Args:
        run: A run folder, a checkpoint file, or the name of a checkpoint that comes with the package:
            "MovementBandits-v0", "AntBandits-v1" or "AntMovement-v1".
        env: An environment with the spaces that the sub-policies were trained on. Default: that of the run.
        device: Torch device of the networks.

    Raises mlsh.errors.UserError if there is no such checkpoint, if it has no sub-policies, or if it does not fit the
    environment.
    """
    data = checkpoint.load(run, [Config])
    cfg = data["config"]
    if not cfg.num_sub_policies:
        raise UserError(f"{run} is of a flat policy (--num_sub_policies 0), which has no sub-policies to load")
    cfg.device = device
    if env is not None:
        return Agent(data, env)
    with contextlib.closing(gym.make(find_id(cfg.env), disable_env_checker=True)) as own:
        return Agent(data, own)


def find_options(
    env: gym.Env[Any, Any] | VectorTasks, run: Path | str | Agent, high_len: int | None
) -> tuple[Agent, int]:
    """Return the agent that provides the options, and the env steps of an option. Arguments as for `OptionActions`.

    Raises ValueError if the agent has other spaces than the environment, or if an option has less than one step.
    """
    agent = run if isinstance(run, Agent) else load(run, env)
    spaces = agent.observation_space, agent.action_space
    if spaces != spaces_of(env):
        raise ValueError(f"the agent's spaces are {spaces}; give an environment that has them")
    steps = agent.config.high_len if high_len is None else high_len
    if steps < 1:
        raise ValueError(f"high_len is {high_len}; use 1 or more")
    return agent, steps


class OptionActions(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """An environment whose actions are frozen sub-policies, so that any RL library can train a master.

    The action space is Discrete(K). An action runs that sub-policy for `high_len` env steps, or until the episode ends.
    The reward is the sum of the rewards of these steps. The infos are those of the last step, and `info["steps"]` is
    the number of env steps taken.

    A time limit around this wrapper counts decisions, and a time limit inside it counts env steps. A discount factor
    applies per decision, as for the masters of MLSH.
    """

    def __init__(
        self, env: gym.Env[Any, Any], run: Path | str | Agent, high_len: int | None = None, deterministic: bool = False
    ) -> None:
        """
        Args:
            env: An environment with the spaces that the sub-policies were trained on.
            run: As for `load`, or an agent that it returned.
            high_len: Env steps per action. Default: that of the run.
            deterministic: Run each sub-policy's most likely actions instead of samples.
        """
        RecordConstructorArgs.__init__(self, run=run, high_len=high_len, deterministic=deterministic)
        super().__init__(env)
        self.agent, self.high_len = find_options(env, run, high_len)
        self.action_space = Discrete(self.agent.sub_policies.n)
        self._deterministic = deterministic
        self._rng = np.random.default_rng()
        self._obs: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._rng = np.random.default_rng([seed, 1])  # not the stream of the environment itself
        self._obs, info = self.env.reset(seed=seed, options=options)
        return self._obs, info

    def step(self, action: int) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        if self._obs is None:
            raise gym.error.ResetNeeded("call reset before step")
        total, steps = 0.0, 0
        terminated, truncated, info = False, False, {}
        while steps < self.high_len and not (terminated or truncated):
            chosen = self.agent.act(self._obs, int(action), self._deterministic, self._rng)
            self._obs, reward, terminated, truncated, info = self.env.step(chosen)
            total += float(reward)
            steps += 1
        return self._obs, total, terminated, truncated, {**info, "steps": steps}


class VectorOptionActions(gym.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """`OptionActions` for a batched environment of this package, with NumPy arrays.

    A slot whose episode ends waits until the options of the others end. Then its next episode begins within the same
    step (`AutoresetMode.SAME_STEP`). `infos["final_obs"]` holds the observations before that, where
    `infos["_final_obs"]` is true. `infos["steps"]` holds the env steps taken in each slot.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self, env: VectorTasks, run: Path | str | Agent, high_len: int | None = None, deterministic: bool = False
    ) -> None:
        """`env` is what `gymnasium.make_vec` returns. The other arguments are those of `OptionActions`."""
        if not isinstance(env, VectorTasks):
            raise TypeError("env is no batched environment of this package; wrap each copy of it in OptionActions")
        self.env, self.num_envs = env, env.num_envs
        self.agent, self.high_len = find_options(env, run, high_len)
        self._deterministic = deterministic
        self._rng = np.random.default_rng()
        self.single_observation_space, self.observation_space = env.single_observation_space, env.observation_space
        self.single_action_space = Discrete(self.agent.sub_policies.n)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """As `VectorTasks.reset`, to which seed and options go."""
        if seed is not None:
            self._rng = np.random.default_rng([*np.atleast_1d(seed), 1])
        self._obs = self.env.reset(seed=seed, options=options)[0].numpy(force=True)
        return self._obs, {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        rewards, steps = np.zeros(self.num_envs), np.zeros(self.num_envs, int)
        terminated, truncated = np.zeros((2, self.num_envs), bool)
        for _ in range(self.high_len):
            alive = ~(terminated | truncated)
            if not alive.any():
                break
            chosen = self.agent.act(self._obs, actions, self._deterministic, self._rng)
            result = self.env.step(torch.from_numpy(chosen).to(self.env.device))
            obs, reward, ended, cut = (x.numpy(force=True) for x in result[:4])
            self._obs = np.where(alive.reshape(-1, *[1] * (obs.ndim - 1)), obs, self._obs)
            rewards += np.where(alive, reward, 0)
            steps += alive
            terminated, truncated = terminated | alive & ended, truncated | alive & cut
        final, over = self._obs, terminated | truncated
        if over.any():
            self._obs = self.env.reset(options={"reset_mask": over})[0].numpy(force=True)
        return self._obs, rewards, terminated, truncated, {"steps": steps, "final_obs": final, "_final_obs": over}

    def close_extras(self, **kwargs: Any) -> None:
        self.env.close()
