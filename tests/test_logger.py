import csv
import json
import time

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from mlsh import logger
from mlsh.errors import UserError
from mlsh.logger import Logger, draw_curves, read_metrics, write_video

FRESH = {"iteration": 0, "env_steps": 0, "seconds": 0.0, "run_id": "abcd1234"}


class Played:
    """Stands for a Rollout of two groups."""

    def __init__(self, *returns):
        self.episode_return = torch.tensor(returns, dtype=torch.float32)
        self.share = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
        self.diverged = torch.tensor([0, 2])


def stats(n):
    return {name: torch.arange(n, dtype=torch.float32) for name in logger.LOSSES}


def write_task(log, iteration, env_steps):
    rollouts = Played([1, 3], [5, 5]), Played([2, 4], [6, 6]), Played([3, 5], [7, 7])
    log.step(iteration, "joint", rollouts[0], env_steps)
    log.task_done(iteration, [1, 0], rollouts, stats(2), stats(2), env_steps)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "checkpoint.pt").write_bytes(b"weights")
    return tmp_path


def test_metrics_config_and_curves(cfg, folder):
    cfg.wandb = "disabled"
    log = Logger(cfg, folder, FRESH)
    write_task(log, 0, 100)
    write_task(log, 1, 200)
    log.finish({"test": []})
    rows = read_metrics(folder)
    assert list(rows[0])[:8] == (
        "iteration group task pretrain_reward trained_reward joint_reward env_steps seconds".split()
    )
    assert [(r["iteration"], r["group"], r["task"], r["env_steps"]) for r in rows] == [
        ("0", "0", "1", "100"),
        ("0", "1", "0", "100"),
        ("1", "0", "1", "200"),
        ("1", "1", "0", "200"),
    ]
    assert [float(rows[0][f"{m}_reward"]) for m in ("pretrain", "trained", "joint")] == [2, 3, 4]
    assert [float(rows[0][f"share_{k}"]) for k in (0, 1)] == [0.25, 0.75]
    assert [row["diverged"] for row in rows] == ["0", "2", "0", "2"]
    assert float(rows[1]["master_kl"]) == 1 and float(rows[0]["sub1_entropy"]) == 1
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["N"] == cfg.N and config["machine"]["packages"]["torch"]
    assert iio.imread(folder / "curves.png").shape[1] > 1000  # three panels
    assert json.loads((folder / "results.json").read_text()) == {"test": []}


def test_continuing_drops_rows_beyond_the_checkpoint_and_torn_lines(cfg, folder):
    cfg.wandb = "disabled"
    log = Logger(cfg, folder, FRESH)
    for i in range(3):
        write_task(log, i, 100 * i)
    log.finish()
    text = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(text[: len(text) - 30])  # killed while writing
    log = Logger(cfg, folder, FRESH | {"iteration": 2})
    write_task(log, 2, 200)
    log.finish()
    iterations = [row["iteration"] for row in csv.DictReader((folder / "metrics.csv").open())]
    assert iterations == ["0", "0", "1", "1", "2", "2"]


def test_offline_wandb_names_the_curves_and_has_the_gifs(cfg, folder, capfd):
    cfg.wandb = "offline"
    log = Logger(cfg, folder, FRESH)
    frames = [np.full((40, 40, 3), shade, np.uint8) for shade in (0, 90, 200)]
    log.video(0, "pretrain-video-1", frames, 10, 50)
    write_task(log, 0, 100)
    log.finish({"test": [{"task": 1, "return": 3.5}]})
    assert "wandb sync" in capfd.readouterr().err
    (run,) = (folder / "wandb").glob("offline-run-*")
    (record,) = run.glob("*.wandb")
    names = ["reward", "trained_reward", "0_trained_reward", "1_trained_reward", "pretrain-video-1", "env_steps"]
    names += ["sub0_policy_loss", "master_entropy", "1_share_0", "1_test_return", "high_len", "checkpoint-abcd1234"]
    for _ in range(100):  # wandb's service may still be writing on a busy machine
        content = record.read_bytes()
        missing = [name for name in names if name.encode() not in content]
        if not missing:
            break
        time.sleep(0.1)
    assert missing == []
    (media,) = run.glob("files/media/videos/pretrain-video-1*.gif")
    assert media.read_bytes() == (folder / "videos" / "00000-pretrain-video-1.gif").read_bytes()
    assert media.name.encode() in content


def test_a_wandb_that_fails_does_not_stop_training(cfg, folder, monkeypatch, capfd):
    class Broken:
        def __getattr__(self, name):
            raise ConnectionError("service is gone")

    monkeypatch.setattr(logger, "start_wandb", lambda *args: Broken())
    log = Logger(cfg, folder, FRESH)
    write_task(log, 0, 100)
    log.finish()
    assert len(read_metrics(folder)) == 2
    assert capfd.readouterr().err.count("wandb failed and is off from here on: service is gone") == 1


def test_a_wandb_that_does_not_start_is_reported(cfg, folder, monkeypatch, capfd):
    def fail(**kwargs):
        raise OSError("no network")

    cfg.wandb = "online"
    monkeypatch.setattr(logger.wandb, "init", fail)
    assert logger.start_wandb(cfg, folder, "id") is None
    assert "going on without it: no network" in capfd.readouterr().err


def test_auto_goes_offline_where_wandb_cannot_be_reached(cfg, folder, monkeypatch, capfd):
    modes = []

    def init(cfg, folder, run_id, mode):
        modes.append(mode)
        raise OSError("no network")

    cfg.wandb = "auto"
    monkeypatch.setattr(logger.wandb, "login", lambda prompt: True)
    monkeypatch.setattr(logger, "init_wandb", init)
    assert logger.start_wandb(cfg, folder, "id") is None
    assert modes == ["online", "offline"]
    monkeypatch.setattr(logger.wandb, "login", lambda prompt: False)
    logger.start_wandb(cfg, folder, "id")
    assert modes[2:] == ["offline"]

    def slow(prompt):
        raise OSError("the login got no answer")

    monkeypatch.setattr(logger.wandb, "login", slow)
    logger.start_wandb(cfg, folder, "id")
    assert modes[3:] == ["offline"]


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_videos(tmp_path, ending):
    frames = [np.full((64, 64, 3), shade, np.uint8) for shade in (0, 90, 200)]
    write_video(tmp_path / f"x.{ending}", frames, fps=10)
    read = iio.imread(tmp_path / f"x.{ending}", index=None) if ending == "gif" else iio.imread(tmp_path / "x.mp4")
    assert [int(frame.mean().round(-1)) for frame in read] == [0, 90, 200]


def test_a_video_that_cannot_be_written_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        write_video(tmp_path / "nowhere" / "x.gif", [np.zeros((8, 8, 3), np.uint8)], 10)


def test_curves_of_a_continuous_family_have_one_panel(tmp_path):
    lines = ["iteration,group,task,pretrain_reward,trained_reward,joint_reward,env_steps"]
    lines += [f'{i},0,"[{i}, 2]",1,2,3,{i}' for i in range(9)]
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    draw_curves(tmp_path)
    assert iio.imread(tmp_path / "curves.png").shape[1] < 500
