"""Evaluation episodes in training, and films of an agent."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mlsh import parallel
from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.envs.base import VectorTasks
from mlsh.envs.mujoco_tasks import MujocoTasks
from mlsh.errors import EnvironmentFailed, UserError
from mlsh.models import Hierarchy
from mlsh.rollout import evaluate
from mlsh.runs.files import safe_name
from mlsh.runs.log import MOMENTS, MLSHLog
from mlsh.runs.video import video
from mlsh.sampling import Streams, Task


class Evaluator:
    """Plays evaluation episodes for the log, and in every `cfg.record`-th outer iteration films some."""

    def __init__(self, cfg: Config, env: VectorTasks, agent: Hierarchy, streams: Streams, log: MLSHLog) -> None:
        """`env`, `agent` and `streams` hold the task groups of this process. The first process films all groups."""
        self._cfg, self._env, self._agent, self._streams, self._log = cfg, env, agent, streams, log
        self._can_film = True

    def play(self, i: int, moment: str) -> None:
        """Play one evaluation episode per slot at one of the `MOMENTS` of outer iteration `i`."""
        cfg, key = self._cfg, MOMENTS[moment].key
        if cfg.record and (i % cfg.record == 0 or i == cfg.tasks - 1):
            masters = parallel.gather(self._agent.master.state_dict())
            tasks = [task for of_process in parallel.gather(self._env.task[:: cfg.N]) for task in of_process]
            if parallel.FIRST and self._can_film:
                self._film(i, key, self._agent._replace(master=self._agent.master.concatenated(masters)), tasks)
        self._log.evaluated(moment, evaluate(self._env, self._agent, self._streams(i, key), cfg.rollout))

    def _film(self, i: int, key: str, agent: Hierarchy, tasks: Sequence[Task]) -> None:
        rngs = Streams(self._cfg.seed, range(self._cfg.groups))(i, f"film {key}")

        def name(task: Task) -> str:
            return f"{key}-video-{safe_name(str(task))}"

        def path(task: Task) -> Path:
            return self._log.folder / "videos" / f"{i:05d}-{name(task)}.gif"

        try:
            for task in film(self._cfg, agent, tasks, rngs, path):
                self._log.add_video(name(task), path(task))
        except Exception as error:  # a film is not worth a run
            said = error if isinstance(error, UserError) else EnvironmentFailed.from_exception("in a film", error)
            self._log.message(f"no videos: {said}")
            self._can_film = type(error) is UserError  # it could not be written, which may change


def film(
    cfg: Config,
    agent: Hierarchy,
    tasks: Sequence[Task],
    rngs: Sequence[np.random.Generator],
    path: Callable[[Task], Path],
    episodes: int = 1,
    every: int = 1,
    at_most: int = 4,
    follow: bool = False,
) -> list[Task]:
    """Film `episodes` episodes of each distinct task, for at most `at_most` tasks. There is one master per task.

    The film of a task is written to `path(task)`, a .gif or .mp4, while it is played. It shows every `every`-th frame,
    so it plays that many times as fast. With `follow` the camera follows the agent, in MuJoCo families only. Returns
    the tasks that were filmed.
    """
    first_with_task: dict[str, int] = {}
    for g, task in enumerate(tasks):
        first_with_task.setdefault(str(task), g)
    shown = list(first_with_task.values())[:at_most]
    env = make_env(cfg, len(shown), render_mode="rgb_array")
    env.set_task([tasks[g] for g in shown])
    if follow:
        assert isinstance(env, MujocoTasks)
        env.camera = env.follow_camera
    agent = agent._replace(master=agent.master.copies_of(shown))
    with contextlib.ExitStack() as stack:
        stack.callback(env.close)
        fps = env.metadata["render_fps"]
        films = [stack.enter_context(video(path(tasks[g]), fps)) for g in shown]
        steps = itertools.count()

        def add_frames() -> None:
            if next(steps) % every == 0:
                for add_frame, frame in zip(films, env.render() or (), strict=True):
                    add_frame(frame)

        for _ in range(episodes):
            evaluate(env, agent, [rngs[g] for g in shown], cfg.rollout, on_step=add_frames)
    return [tasks[g] for g in shown]
