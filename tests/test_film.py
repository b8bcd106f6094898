import dataclasses

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.envs.ant_mazes import AntMazesVector
from mlsh.envs.movement_bandits import MovementBanditsVector
from mlsh.envs.mujoco_tasks import MujocoTasks
from mlsh.errors import RenderingUnavailable
from mlsh.models import Hierarchy
from mlsh.rollout import evaluate
from mlsh.runs import film as film_module
from mlsh.runs.film import Evaluator, film
from mlsh.sampling import Streams


def new_agent(cfg):
    agent = Hierarchy.build(cfg, make_env(cfg, 1))
    agent.master.reset(Streams(0, range(cfg.groups))(0, "master"))
    agent.sub_policies.reset(Streams(0, range(cfg.num_sub_policies))(0, "subs"))
    return agent


def test_film_shows_each_task_once(tmp_path):
    cfg = Config(T=4, groups=3)
    rngs = Streams(0, range(3))(0, "film")
    assert film(cfg, new_agent(cfg), [1, 0, 1], rngs, lambda task: tmp_path / f"{task}.mp4", episodes=2) == [1, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mp4", "1.mp4"]
    for task in (0, 1):
        assert iio.imread(tmp_path / f"{task}.mp4").shape == (2 * 5, 520, 520, 3)
        assert iio.immeta(tmp_path / f"{task}.mp4")["fps"] == 10


def test_a_film_may_be_faster(tmp_path):
    cfg = Config(T=4, groups=1)
    for every in (1, 3):
        rngs = Streams(0, [0])(0, "film")
        film(cfg, new_agent(cfg), [1], rngs, lambda task, n=every: tmp_path / f"{n}.mp4", episodes=2, every=every)
    whole, fast = (iio.imread(tmp_path / f"{every}.mp4").astype(int) for every in (1, 3))
    assert (len(whole), len(fast)) == (10, 4)
    assert abs(fast - whole[::3]).max() < abs(fast[:3] - whole[1::3]).max()


class Log:
    """Stands for the log."""

    def __init__(self, folder):
        self.folder, self.messages, self.evaluations, self.videos = folder, [], [], []
        (folder / "videos").mkdir()

    def message(self, text):
        self.messages.append(text)

    def evaluated(self, moment, outcome):
        self.evaluations.append((moment, outcome.episode_return))

    def add_video(self, name, path):
        self.videos.append((name, path.name))


def test_evaluation_episodes_are_reported_and_now_and_then_filmed(cfg, tmp_path):
    cfg = dataclasses.replace(cfg, record=3, tasks=6)
    agent, env = new_agent(cfg), make_env(cfg, cfg.groups * cfg.N)
    env.set_task([1, 0])
    before = [p.clone() for part in agent for p in part.state_dict().values()]
    streams, log = Streams(cfg.seed, range(cfg.groups)), Log(tmp_path)
    evaluator = Evaluator(cfg, env, agent, streams, log)
    for i in range(cfg.tasks):
        evaluator.play(i, "untrained")
    filmed = [(f"pretrain-video-{task}", f"0000{i}-pretrain-video-{task}.gif") for i in (0, 3, 5) for task in (1, 0)]
    assert log.videos == filmed and {p.name for p in (tmp_path / "videos").iterdir()} == {name for _, name in filmed}
    assert [moment for moment, _ in log.evaluations] == ["untrained"] * 6
    expected = evaluate(env, agent, streams(4, "pretrain"), cfg.rollout).episode_return
    assert torch.equal(log.evaluations[4][1], expected)  # without random decisions
    after = [p for part in agent for p in part.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_what_cannot_be_drawn_is_said_once(cfg, tmp_path, monkeypatch):
    def unavailable(*args):
        raise RenderingUnavailable("no OpenGL")

    monkeypatch.setattr(film_module, "film", unavailable)
    cfg = dataclasses.replace(cfg, record=1)
    log = Log(tmp_path)
    evaluator = Evaluator(cfg, make_env(cfg, 6), new_agent(cfg), Streams(0, range(2)), log)
    for i in range(2):
        evaluator.play(i, "untrained")
    assert log.messages == ["no videos: no OpenGL"] and len(log.evaluations) == 2


def test_what_stops_being_drawn_leaves_no_part_of_a_film(cfg, tmp_path, monkeypatch):
    frames, render = [], MovementBanditsVector.render

    def lost(env):
        frames.append(render(env))
        if len(frames) > 3:
            raise RenderingUnavailable("lost")
        return frames[-1]

    monkeypatch.setattr(MovementBanditsVector, "render", lost)
    with pytest.raises(RenderingUnavailable):
        film(cfg, new_agent(cfg), [1, 0], Streams(0, range(2))(0, "film"), lambda task: tmp_path / f"{task}.gif")
    assert list(tmp_path.iterdir()) == []


def test_a_camera_follows_if_asked(tmp_path, monkeypatch):
    cfg, cameras = dataclasses.replace(Config.defaults("AntMaze-v1"), T=2, high_len=1), []

    def render(env):
        cameras.append(env.camera)
        return [np.zeros((8, 8, 3), np.uint8)] * env.num_envs

    monkeypatch.setattr(MujocoTasks, "render", render)
    agent = Hierarchy.build(cfg, make_env(cfg, 1), 1)
    for follow in (False, True):
        film(cfg, agent, [0], Streams(0, [0])(0, "x"), lambda _: tmp_path / "x.gif", follow=follow)
        assert cameras[-1] is (AntMazesVector.follow_camera if follow else AntMazesVector.camera)
