"""Train masters with Stable-Baselines3 over sub-policies that MLSH has learned: python sb3_masters.py --help

Needs `pip install -e .[sb3]` in the root of the repository.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import tyro
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

import mlsh

NUM_ENVS = 8
# chosen on the seeds 100 and above, which are not reported
SETTINGS: dict[str, dict[str, Any]] = {
    "PPO": {"n_steps": 80 // NUM_ENVS, "batch_size": 40, "n_epochs": 4, "learning_rate": 1e-2},
    "DQN": {
        "learning_rate": 1e-3,
        "learning_starts": 40,
        "train_freq": 1,
        "gradient_steps": 2 * NUM_ENVS,
        "target_update_interval": 50,
        "exploration_fraction": 0.5,
    },
}


@dataclass
class Args:
    """Train one master per seed, and write its mean return in evaluation episodes as it learns.

    Examples:
        python sb3_masters.py --algorithm DQN --env MovementBandits-v0 --task 1
        python sb3_masters.py --env AntObstacles-v1 --run AntMovement-v1 --env_steps 192000 --every 16000
    """

    algorithm: Literal["PPO", "DQN"] = "PPO"
    """Algorithm of Stable-Baselines3."""
    env: str = "MovementBandits-v0"
    """Environment of this package whose episodes do not end early, since env steps are counted by decisions."""
    run: str = "MovementBandits-v0"
    """Run folder, checkpoint, or name of a checkpoint that comes with the package."""
    task: int = 0
    """Task of the environment."""
    high_len: int = 0
    """Env steps per decision; 0 for that of the run."""
    env_steps: int = 40_000
    """Env steps to learn from, per master."""
    every: int = 2_000
    """Env steps between two evaluations, a multiple of 8 decisions."""
    episodes: int = 8
    """Evaluation episodes, whose env steps are not counted."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, one per master."""
    out: str = "sb3.csv"
    """CSV file with one row per seed and evaluation."""


class OptionVector(VecEnv):
    """Options for Stable-Baselines3, with observations normalised as in the run that the sub-policies are from."""

    def __init__(self, env: mlsh.VectorOptionActions, seed: int) -> None:
        self._env, self._first_seed = env, seed  # first, since the next line reads attributes
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> np.ndarray:
        return self._env.agent.normalise(self._env.reset(seed=self._first_seed)[0])

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        obs, rewards, terminated, truncated, infos = self._env.step(self._actions)
        over = terminated | truncated  # the time limit counts as an end, since the goal is to be there before it
        normalise = self._env.agent.normalise
        ends = zip(over, normalise(infos["final_obs"]), strict=True)
        return normalise(obs), rewards, over, [{"terminal_observation": final} if x else {} for x, final in ends]

    def close(self) -> None:
        self._env.close()

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self._env, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError


def make_env(args: Args, num_envs: int) -> mlsh.VectorOptionActions:
    env: Any = gym.make_vec(f"mlsh:{args.env}", num_envs=num_envs)
    env.set_task(args.task)
    return mlsh.VectorOptionActions(env, args.run, args.high_len or None)


class Evaluation(BaseCallback):
    """Evaluates the master before its first env step, then after every `args.every` env steps."""

    def __init__(self, args: Args, seed: int) -> None:
        super().__init__()
        self.curve: list[tuple[int, float]] = []  # env steps learned from, mean return
        self._args, self._seed, self._env = args, seed, make_env(args, args.episodes)

    def _on_step(self) -> bool:
        env_steps = (self.num_timesteps - NUM_ENVS) * self._env.high_len  # the latest step is not yet learned from
        if env_steps % self._args.every == 0:
            self._evaluate(env_steps)
        return True

    def _on_training_end(self) -> None:
        self._evaluate(self.num_timesteps * self._env.high_len)

    def _evaluate(self, env_steps: int) -> None:
        """Play one episode per slot, in which PPO samples its actions and DQN is greedy."""
        obs, _ = self._env.reset(seed=10**6 * (self._seed + 1) + len(self.curve))
        returns, alive = np.zeros(self._env.num_envs), np.ones(self._env.num_envs, bool)
        while alive.any():
            seen = self._env.agent.normalise(obs)
            actions, _ = self.model.predict(seen, deterministic=isinstance(self.model, DQN))
            obs, rewards, terminated, truncated, _ = self._env.step(actions)
            returns += np.where(alive, rewards, 0)
            alive &= ~(terminated | truncated)
        self.curve.append((env_steps, returns.mean()))
        print(
            f"{self._args.algorithm}, seed {self._seed}: {env_steps:,} env steps, return {returns.mean():.2f}",
            flush=True,
        )


def train(args: Args, seed: int) -> Sequence[tuple[int, float]]:
    """Train one master; return the env steps learned from and the mean return at each evaluation."""
    evaluation = Evaluation(args, seed)
    env = make_env(args, NUM_ENVS)
    scaled = VecNormalize(OptionVector(env, seed), norm_obs=False, gamma=0.99)  # scales rewards
    kind = {"PPO": PPO, "DQN": DQN}[args.algorithm]
    model = kind("MlpPolicy", scaled, seed=seed, device="cpu", **SETTINGS[args.algorithm])
    model.learn(args.env_steps // env.high_len, callback=evaluation)
    return evaluation.curve


def main() -> None:
    args = tyro.cli(Args, use_underscores=True)
    with open(args.out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["algorithm", "env", "task", "seed", "env_steps", "return"])
        for seed in args.seeds:
            for env_steps, returns in train(args, seed):
                writer.writerow([args.algorithm, args.env, args.task, seed, env_steps, f"{returns:.6g}"])
            file.flush()


if __name__ == "__main__":
    main()
