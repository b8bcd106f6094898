"""Looks at an agent at work, from which nobody learns: what it returns, and films of it."""

import contextlib
import itertools

from mlsh import parallel
from mlsh.envs import make_env
from mlsh.errors import RenderingUnavailable
from mlsh.runs.files import safe_name
from mlsh.rollout import measure
from mlsh.sampling import Streams
from mlsh.runs.video import video


class Look:
    """look(i, moment): play episodes of outer iteration i for `log` to report, and in every `cfg.record`-th film some.

    `env`, `agent`, `streams`: of this process's task groups. The films are of all groups, by the first process.
    """

    def __init__(self, cfg, env, agent, streams, log):
        self._cfg, self._env, self._agent, self._streams, self._log = cfg, env, agent, streams, log
        self._unavailable = False

    def __call__(self, i, moment):
        cfg = self._cfg
        if cfg.record and (i % cfg.record == 0 or i == cfg.tasks - 1):
            masters = parallel.gather(self._agent.master.state_dict())
            tasks = [task for some in parallel.gather(self._env.task[:: cfg.N]) for task in some]
            if parallel.FIRST and not self._unavailable:
                self._film(i, moment, self._agent._replace(master=self._agent.master.joined(masters)), tasks)
        self._log.look(moment, measure(self._env, self._agent, self._streams(i, moment), **cfg.play))

    def _film(self, i, moment, agent, tasks):
        rngs = Streams(self._cfg.seed, range(self._cfg.groups))(i, f"film {moment}")

        def name(task):
            return f"{moment}-video-{safe_name(str(task))}"

        def path(task):
            return self._log.folder / "videos" / f"{i:05d}-{name(task)}.gif"

        try:
            for task in film(self._cfg, agent, tasks, rngs, path):
                self._log.video(name(task), path(task))
        except RenderingUnavailable as error:
            self._log.say(f"no videos: {error}")
            self._unavailable = True


def film(cfg, agent, tasks, rngs, path, episodes=1, every=1, most=4):
    """Film `episodes` episodes of each distinct task among `tasks` (one a master), of at most `most` of them.

    The film of a task is written to `path(task)`, a .gif or .mp4, as its frames come. It has one frame
    of every `every`, and is as many times as fast. Returns the tasks filmed.
    """
    first = {}
    for g, task in enumerate(tasks):
        first.setdefault(str(task), g)
    shown = list(first.values())[:most]
    env = make_env(cfg, len(shown), render_mode="rgb_array")
    env.set_task([tasks[g] for g in shown])
    agent = agent._replace(master=agent.master.only(shown))
    with contextlib.ExitStack() as stack:
        stack.callback(env.close)
        add = [stack.enter_context(video(path(tasks[g]), env.metadata["render_fps"])) for g in shown]
        steps = itertools.count()

        def on_step():
            if next(steps) % every:
                return
            for add_to_its_film, frame in zip(add, env.render(), strict=True):
                add_to_its_film(frame)

        for _ in range(episodes):
            measure(env, agent, [rngs[g] for g in shown], on_step=on_step, **cfg.play)
    return [tasks[g] for g in shown]
