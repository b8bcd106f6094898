"""Train masters with Stable-Baselines3 over sub-policies that MLSH has learned: python sb3_masters.py --help

Needs `pip install stable-baselines3`.
"""

import csv
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import tyro
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import mlsh

SETTINGS: dict[str, dict[str, Any]] = {
    "PPO": {"n_steps": 80, "batch_size": 40, "learning_rate": 1e-2},
    "DQN": {
        "learning_rate": 1e-3,
        "learning_starts": 40,
        "train_freq": 1,
        "gradient_steps": 2,
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
    """Environment of this package."""
    run: str = "MovementBandits-v0"
    """Run folder, checkpoint, or name of a checkpoint that comes with the package."""
    task: int = 0
    """Task of the environment."""
    high_len: int = 0
    """Env steps per decision; 0 for that of the run."""
    env_steps: int = 40_000
    """Env steps to learn from, per master."""
    every: int = 2_000
    """Env steps between two evaluations."""
    episodes: int = 5
    """Evaluation episodes, whose env steps are not counted."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT [INT ...]")] = (0,)
    """Seeds, one per master."""
    out: str = "sb3.csv"
    """CSV file with one row per seed and evaluation."""


def make_env(args: Args) -> gym.Env[Any, Any]:
    return mlsh.OptionActions(gym.make(f"mlsh:{args.env}", task=args.task), args.run, args.high_len or None)


def evaluate(model: BaseAlgorithm, normalised: VecNormalize, env: gym.Env[Any, Any], episodes: int, seed: int) -> float:
    """Mean return of episodes played by the model, in which PPO samples its actions and DQN is greedy."""
    returns = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=seed + episode)
        total, over = 0.0, False
        while not over:
            action, _ = model.predict(normalised.normalize_obs(obs), deterministic=isinstance(model, DQN))
            obs, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return float(np.mean(returns))


class Evaluation(BaseCallback):
    """Evaluates the master before its first env step, then after every `args.every` env steps."""

    def __init__(self, args: Args, seed: int) -> None:
        super().__init__()
        self.curve: list[tuple[int, float]] = []  # env steps learned from, mean return
        self._args, self._seed, self._env = args, seed, make_env(args)
        self.high_len: int = self._env.get_wrapper_attr("high_len")

    def _on_step(self) -> bool:
        decisions = self.num_timesteps - 1  # at this point, PPO has learned from all decisions before the last one
        if decisions * self.high_len % self._args.every == 0:
            self._evaluate(decisions * self.high_len)
        return True

    def _on_training_end(self) -> None:
        self._evaluate(self.num_timesteps * self.high_len)

    def _evaluate(self, env_steps: int) -> None:
        normalised = self.model.get_vec_normalize_env()
        assert normalised
        returns = evaluate(self.model, normalised, self._env, self._args.episodes, seed=10**6 * (self._seed + 1))
        self.curve.append((env_steps, returns))
        print(f"{self._args.algorithm}, seed {self._seed}: {env_steps:,} env steps, return {returns:.2f}", flush=True)


def train(args: Args, seed: int) -> list[tuple[int, float]]:
    """Train one master; return the env steps learned from and the mean return at each evaluation."""
    evaluation = Evaluation(args, seed)
    normalised = VecNormalize(DummyVecEnv([lambda: make_env(args)]), gamma=0.99)
    kind = {"PPO": PPO, "DQN": DQN}[args.algorithm]
    model = kind("MlpPolicy", normalised, seed=seed, device="cpu", **SETTINGS[args.algorithm])
    model.learn(args.env_steps // evaluation.high_len, callback=evaluation)
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
