"""Looks at an agent at work, from which nobody learns: what it returns, and films of it."""

from pathlib import Path

import imageio
import numpy as np
from PIL import Image

from mlsh import parallel
from mlsh.envs import make_env
from mlsh.errors import RenderingUnavailable, UserError
from mlsh.rollout import measure
from mlsh.sampling import Streams


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
        try:
            for task, frames, fps in film(self._cfg, agent, tasks, rngs):
                name = f"{moment}-video-{task}"
                path = self._log.folder / "videos" / f"{i:05d}-{name}.gif"
                write_video(path, frames, fps)
                self._log.video(name, path)
        except RenderingUnavailable as error:
            self._log.say(f"no videos: {error}")
            self._unavailable = True


def film(cfg, agent, tasks, rngs, episodes=1, most=4):
    """Film `episodes` episodes of each distinct task among `tasks` (one a master), of at most `most` of them.

    Yields task, frames (uint8 [H, W, 3]) and frames per second.
    """
    first = {}
    for g, task in enumerate(tasks):
        first.setdefault(str(task), g)
    shown = list(first.values())[:most]
    env = make_env(cfg, len(shown) * episodes, render_mode="rgb_array")
    env.set_task([tasks[g] for g in shown])
    agent = agent._replace(master=agent.master.only(shown))
    frames = []  # [T + 1] of [len(shown) * episodes]
    measure(env, agent, [rngs[g] for g in shown], on_step=lambda: frames.append(env.render()), **cfg.play)
    fps = env.metadata["render_fps"]
    env.close()
    for j, g in enumerate(shown):
        yield tasks[g], [frame[e] for e in range(j * episodes, (j + 1) * episodes) for frame in frames], fps


def write_video(path, frames, fps):
    """Write frames (uint8 [H, W, 3] each) as .gif or .mp4, by the ending of `path`."""
    try:
        if Path(path).suffix == ".gif":
            # one palette and no dithering: what stands still costs nothing, a tenth of the bytes
            palette = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 20)])).quantize(64)
            first, *rest = [Image.fromarray(frame).quantize(palette=palette, dither=0) for frame in frames]
            first.save(path, save_all=True, append_images=rest, duration=1000 / fps, loop=0)
        else:
            imageio.mimsave(path, frames, fps=fps, macro_block_size=2)
    except (OSError, ValueError) as error:
        wanted = "it wants free disk space, permission, and an end in .gif or .mp4"
        raise UserError(f"cannot write {path} ({error}); {wanted}") from None
