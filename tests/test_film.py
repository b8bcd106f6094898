import dataclasses

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from mlsh import film as film_module
from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.errors import RenderingUnavailable, UserError
from mlsh.film import Look, film, write_video
from mlsh.models import Hierarchy
from mlsh.rollout import measure
from mlsh.sampling import Streams


def new_agent(cfg):
    agent = Hierarchy.build(cfg, make_env(cfg, 1))
    agent.master.reset(Streams(0, range(cfg.groups))(0, "master"))
    agent.subs.reset(Streams(0, range(cfg.num_low))(0, "subs"))
    return agent


def test_film_shows_each_task_once():
    cfg = Config(T=4, groups=3)
    films = list(film(cfg, new_agent(cfg), [1, 0, 1], Streams(0, range(3))(0, "film"), episodes=2))
    assert [task for task, _, _ in films] == [1, 0]
    for _, frames, fps in films:
        assert len(frames) == 2 * 5 and frames[0].shape == (400, 400, 3) and fps == 10


class Log:
    """Stands for the log."""

    def __init__(self, folder):
        self.folder, self.said, self.looks, self.videos = folder, [], [], []
        (folder / "videos").mkdir()

    def say(self, text):
        self.said.append(text)

    def look(self, moment, outcome):
        self.looks.append((moment, outcome.episode_return))

    def video(self, name, path):
        self.videos.append((name, path.name))


def test_a_look_is_reported_and_now_and_then_filmed(cfg, tmp_path):
    cfg = dataclasses.replace(cfg, record=3, tasks=6)
    agent, env = new_agent(cfg), make_env(cfg, cfg.groups * cfg.N)
    env.set_task([1, 0])
    before = [p.clone() for part in agent for p in part.state_dict().values()]
    streams, log = Streams(cfg.seed, range(cfg.groups)), Log(tmp_path)
    look = Look(cfg, env, agent, streams, log)
    for i in range(cfg.tasks):
        look(i, "pretrain")
    filmed = [(f"pretrain-video-{task}", f"0000{i}-pretrain-video-{task}.gif") for i in (0, 3, 5) for task in (1, 0)]
    assert log.videos == filmed and {p.name for p in (tmp_path / "videos").iterdir()} == {name for _, name in filmed}
    assert [moment for moment, _ in log.looks] == ["pretrain"] * 6
    expected = measure(env, agent, streams(4, "pretrain"), **cfg.play).episode_return
    assert torch.equal(log.looks[4][1], expected)  # without random decisions
    after = [p for part in agent for p in part.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_what_cannot_be_drawn_is_said_once(cfg, tmp_path, monkeypatch):
    def unavailable(*args):
        raise RenderingUnavailable("no OpenGL")

    monkeypatch.setattr(film_module, "film", unavailable)
    cfg = dataclasses.replace(cfg, record=1)
    log = Log(tmp_path)
    look = Look(cfg, make_env(cfg, 6), new_agent(cfg), Streams(0, range(2)), log)
    for i in range(2):
        look(i, "pretrain")
    assert log.said == ["no videos: no OpenGL"] and len(log.looks) == 2


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_videos(tmp_path, ending):
    frames = [np.full((64, 64, 3), shade, np.uint8) for shade in (0, 90, 200)]
    write_video(tmp_path / f"x.{ending}", frames, fps=10)
    read = iio.imread(tmp_path / f"x.{ending}", index=None) if ending == "gif" else iio.imread(tmp_path / "x.mp4")
    assert [int(frame.mean().round(-1)) for frame in read] == [0, 90, 200]


def test_a_video_that_cannot_be_written_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        write_video(tmp_path / "nowhere" / "x.gif", [np.zeros((8, 8, 3), np.uint8)], 10)
