import time

import imageio.v3 as iio
import numpy as np
import pytest
import wandb

from mlsh import tracking
from mlsh.logger import Logger, read_metrics
from mlsh.tracking import Tracker, start_wandb
from mlsh.video import video
from test_logger import Life, write_task


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "checkpoint.pt").write_bytes(b"weights")
    return tmp_path


def test_offline_wandb_names_the_curves_and_has_the_gifs(cfg, folder, capfd):
    cfg.wandb = "offline"
    log = Logger(Life(cfg, folder))
    gif = folder / "videos" / "00000-pretrain-video-1.gif"
    with video(gif, 10) as add:
        for shade in (0, 90, 200):
            add(np.full((40, 40, 3), shade, np.uint8))
    log.video("pretrain-video-1", gif)
    write_task(log, 0)
    log.close({"test": [{"task": 1, "return": 3.5}]})
    wandb.teardown()
    assert "wandb sync" in capfd.readouterr().err
    (run,) = (folder / "wandb").glob("offline-run-*")
    (record,) = run.glob("*.wandb")
    names = ["reward", "trained_reward", "0_trained_reward", "1_trained_reward", "pretrain-video-1", "env_steps"]
    names += ["sub0_policy_loss", "master_entropy", "1_share_0", "1_test_return", "high_len", "checkpoint-id"]
    for _ in range(100):  # wandb's service may still be writing on a busy machine
        content = record.read_bytes()
        missing = [name for name in names if name.encode() not in content]
        if not missing:
            break
        time.sleep(0.1)
    assert missing == []
    (media,) = run.glob("files/media/videos/pretrain-video-1*.gif")
    assert media.read_bytes() == gif.read_bytes() and len(iio.imread(gif, index=None)) == 3
    assert media.name.encode() in content


def test_a_wandb_that_fails_does_not_stop_training(cfg, folder, monkeypatch, capfd):
    class Broken:
        def __getattr__(self, name):
            raise ConnectionError("service is gone")

    cfg.wandb = "offline"
    monkeypatch.setattr(tracking, "start_wandb", lambda *args: Broken())
    log = Logger(Life(cfg, folder))
    write_task(log, 0)
    log.close()
    assert len(read_metrics(folder)) == 2
    assert capfd.readouterr().err.count("wandb failed and is off from here on: service is gone") == 1


def test_a_tracker_that_did_not_start_is_silent(cfg, folder, monkeypatch):
    monkeypatch.setattr(tracking, "start_wandb", lambda *args: None)
    said = []
    tracker = Tracker(cfg, folder, "id", said.append)
    tracker.log({"reward": 1}, 2)
    tracker.video("film", folder / "no.gif", 2)
    tracker.finish({})
    tracker.abandon()
    assert said == []


def test_a_wandb_that_does_not_start_is_reported(cfg, folder, monkeypatch, capfd):
    def fail(**kwargs):
        raise OSError("no network")

    cfg.wandb = "online"
    monkeypatch.setattr(wandb, "init", fail)
    assert start_wandb(cfg, folder, "id") is None
    assert "going on without it: no network" in capfd.readouterr().err


def test_auto_goes_offline_where_wandb_cannot_be_reached(cfg, folder, monkeypatch):
    modes = []

    def init(cfg, folder, run_id, mode):
        modes.append(mode)
        raise OSError("no network")

    cfg.wandb = "auto"
    monkeypatch.setattr(wandb, "login", lambda prompt: True)
    monkeypatch.setattr(tracking, "init_wandb", init)
    assert start_wandb(cfg, folder, "id") is None
    assert modes == ["online", "offline"]
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    start_wandb(cfg, folder, "id")
    assert modes[2:] == ["offline"]

    def slow(prompt):
        raise OSError("the login got no answer")

    monkeypatch.setattr(wandb, "login", slow)
    start_wandb(cfg, folder, "id")
    assert modes[3:] == ["offline"]
