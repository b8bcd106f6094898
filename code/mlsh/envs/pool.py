"""Batched environments for tests: as many episodes at a time as fit, and a progress bar."""

from typing import Any, Literal, Self

from mlsh.envs.base import VectorTasks
from mlsh.envs.registry import make_env, max_parallel_episodes
from mlsh.progress import progress_bar

Purpose = Literal["play", "evaluate"]


class EnvPool:
    """A context with batched environments for some settings, and a progress bar over at most so many env steps."""

    def __init__(self, cfg: Any, description: str, env_steps: int) -> None:
        self.cfg = cfg
        self.slots_at_once: int = max_parallel_episodes(cfg)
        self._envs: dict[Purpose, VectorTasks] = {}
        self._bar = progress_bar(env_steps, description=description, unit=" steps")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for env in self._envs.values():
            env.close()
        self._bar.close()

    def env(self, slots: int, tasks: list[Any], purpose: Purpose = "play") -> VectorTasks:
        """The environment for a purpose, with so many slots and these tasks. A new one is made for a new number."""
        env = self._envs.get(purpose)
        if env is None or env.num_envs != slots:
            if env is not None:
                env.close()  # first, so that there are never two
            env = self._envs[purpose] = make_env(self.cfg, slots)
        env.set_task(tasks)
        return env

    def chunks(self, tasks: int, slots_per_task: int) -> list[range]:
        """The indices of so many tasks in ranges of neighbours that are played at the same time."""
        at_once = max(1, self.slots_at_once // slots_per_task)
        return [range(first, min(first + at_once, tasks)) for first in range(0, tasks, at_once)]

    def advance(self, env_steps: int) -> None:
        """Advance the progress bar."""
        self._bar.update(env_steps)
