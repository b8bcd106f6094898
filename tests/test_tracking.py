import json
import shlex
import struct
import subprocess
import sys
import time

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from conftest import CODE, TINY
from mlsh.errors import UserError
from mlsh.runs import checkpoint, tracking
from mlsh.runs.log import LOSSES, MLSHLog
from mlsh.runs.metrics import read_metrics
from mlsh.runs.tracking import WandbTracker, start_wandb
from mlsh.runs.video import video
from test_log import RESULTS, FakeRun, log_outer_iteration

MACHINE = {"commit": "abc1234", "packages": {"torch": "9.8.7"}}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    names = "MODE PROJECT ENTITY RUN_GROUP NAME DISABLED TAGS NOTES JOB_TYPE RUN_ID SWEEP_ID"
    for name in names.split():
        monkeypatch.delenv(f"WANDB_{name}", raising=False)


@pytest.fixture
def folder(tmp_path, cfg):
    folder = tmp_path / "a run's folder"
    (folder / "videos").mkdir(parents=True)
    checkpoint.save(snapshot(cfg, 2), folder / "checkpoint.pt")
    return folder


def snapshot(cfg, iteration):
    progress = {"iteration": iteration, "env_steps": 40 * iteration, "train_env_steps": 0, "seconds": 0.0, "run_id": ""}
    return checkpoint.snapshot(cfg, progress, linear=torch.nn.Linear(iteration, 1))


def run_with_wandb(cfg, folder):
    run = FakeRun(cfg, folder)
    run.trackers.append(WandbTracker(cfg, folder, "id", MACHINE))
    return run


def decode(folder):
    """Return the records of the offline runs in a run folder, by kind, as wandb itself would read them."""
    found = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, position, record = path.read_bytes(), 7, b""  # LevelDB's log format after a header of 7 bytes
        while position + 7 <= len(data):
            left = 32768 - position % 32768  # a header does not cross the end of a block
            if left < 7:
                position += left
                continue
            size, kind = struct.unpack_from("<HB", data, position + 4)
            position += 7 + size
            record += data[position - size : position]
            if kind in (1, 4):  # whole, or the last part
                parsed = Record.FromString(record)
                name = parsed.WhichOneof("record_type")
                found.setdefault(name, []).append(getattr(parsed, name))
                record = b""
    return found


def values_of(items):
    return {"/".join(x.nested_key) or x.key: json.loads(x.value_json) for x in items}


def missing(record, names):
    """Return the names that are not in wandb's record. On a busy machine its service may still be writing."""
    for _ in range(100):
        content = record.read_bytes()
        absent = [name for name in names if name.encode() not in content]
        if not absent:
            break
        time.sleep(0.1)
    return absent


def test_an_offline_run_on_wandb_has_all_names_and_the_gifs(cfg, folder, capfd):
    cfg.wandb = "offline"
    log = MLSHLog(run_with_wandb(cfg, folder))
    gif = folder / "videos" / "00000-pretrain-video-1.gif"
    with video(gif, 10) as add:
        for shade in (0, 90, 200):
            add(np.full((40, 40, 3), shade, np.uint8))
    log.add_video("pretrain-video-1", gif)
    log_outer_iteration(log, 0)
    row = {"task": 1, "label": "b", "return": 3.5, "standard_error": 0.5, "share": [1.0, 0.0]}
    log.close(RESULTS | {"test": [row]})
    wandb.teardown()
    printed = capfd.readouterr()
    assert "task 1 (b): return 3.5 ± 0.5" in printed.out
    command = printed.err.split("then `")[1].split("`")[0]
    assert command.startswith("wandb sync ")
    (run,) = (folder / "wandb").glob("offline-run-*")
    (record,) = run.glob("*.wandb")
    names = ["reward", "trained_reward", "0_trained_reward", "1_trained_reward", "env_steps"]
    names += ["losses/sub0_policy_loss", "losses/master_entropy", "losses/sub1_explained_variance", "tasks/1_share_0"]
    names += ["training/SPS", "training/episodic_length", "training/explore", "videos/pretrain-video-1"]
    names += ["test/1_return", "1_test_return", "1_test_standard_error", "high_len", "abc1234", "9.8.7"]
    names += ["checkpoint-id", "checkpoint.pt", "results.json", "train.py", "tracking.py"]
    (film,) = run.glob("files/media/videos/**/*.gif")  # once
    assert missing(record, [*names, film.name]) == []
    assert film.parent.name == "videos" and film.read_bytes() == gif.read_bytes()
    assert len(iio.imread(gif, index=None)) == 3
    words = shlex.split(command)  # as the shell splits it, before it expands the star
    assert len(words) == 3 and list(folder.glob(words[2].removeprefix(f"{folder}/"))) == [run]


def test_the_names_of_the_earlier_port_are_logged_but_get_no_charts(cfg, folder):
    cfg.wandb = "offline"
    log = MLSHLog(run_with_wandb(cfg, folder))
    log_outer_iteration(log, 0)
    log.close()
    wandb.teardown()
    records = decode(folder)
    logged = values_of(item for row in records["history"] for item in row.item)
    hidden = {x.name for x in records["metric"] if x.options.hidden}
    assert hidden == {name for name in logged if "/" not in name and name[0] != "_"}
    assert hidden > {"reward", "pretrain_reward", "trained_reward", "joint_reward", "0_trained_reward", "env_steps"}
    assert logged["trained_reward"] == logged["charts/trained_reward"] == 4.5
    sections = {name.split("/")[0] for name in logged if "/" in name}
    assert sections == {"charts", "training", "losses", "tasks", "test"}
    assert {x.step_metric for x in records["metric"] if x.name != "env_steps"} == {"env_steps"}


def test_the_best_and_the_last_checkpoint_are_versions_of_an_artifact(cfg, folder):
    cfg.wandb = "offline"
    run = run_with_wandb(cfg, folder)
    log = MLSHLog(run)
    run.trackers[0].keep_best(snapshot(cfg, 1), 6.25)
    log_outer_iteration(log, 0)
    log.close(RESULTS | {"test": [{"task": 1, "label": "b", "return": 3.5, "standard_error": 0.5, "share": [1.0]}]})
    wandb.teardown()
    best, last = (x for x in decode(folder)["artifact"] if x.type == "model")
    assert best.name == last.name == "checkpoint-id"
    assert {*best.aliases} == {"best", "latest"} and {*last.aliases} == {"last", "latest"}  # latest moves to the last
    assert json.loads(best.metadata) == {
        **{"kind": "mlsh", "env": cfg.env, "seed": cfg.seed, "iteration": 1, "env_steps": 40, "trained_reward": 6.25}
    }
    assert json.loads(last.metadata)["iteration"] == 2 and json.loads(last.metadata)["test_return"] == 3.5
    (entry,) = best.manifest.contents
    kept = torch.load(entry.local_path, weights_only=True)
    assert entry.path == "checkpoint.pt" and kept["linear"]["weight"].shape == (1, 1)
    assert {x.path for x in last.manifest.contents} == {"checkpoint.pt", "results.json"}


def test_the_best_checkpoint_has_the_highest_trained_reward_also_after_c(command, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(
        WandbTracker, "keep_best", lambda self, snapshot, reward: kept.append((snapshot["iteration"], reward))
    )
    flags = [*TINY[:-1], "offline", "--record", 0, "--out", tmp_path]
    assert command("train.py", *flags, "--tasks", 5)[0] == 0
    first = len(kept)
    code, _, err = command("train.py", "-c", "--out", tmp_path, "--tasks", 8)
    assert code == 0, err
    rows = read_metrics(tmp_path)
    means = [np.mean([float(row["trained_reward"]) for row in rows if row["iteration"] == str(i)]) for i in range(8)]
    records = [i for i in range(8) if means[i] > max(means[:i], default=-1)]
    assert [i for i, _ in kept] == records and [x for _, x in kept] == pytest.approx([means[i] for i in records])
    assert first == sum(i < 5 for i in records) and means[5] < max(means[:5])  # so -c must remember


def test_a_wandb_that_fails_does_not_stop_training(cfg, folder, monkeypatch, capfd):
    class Broken:
        id = "id"

        def __getattr__(self, name):
            raise ConnectionError("service is gone")

    cfg.wandb = "offline"
    monkeypatch.setattr(tracking, "start_wandb", lambda *args: Broken())
    log = MLSHLog(run_with_wandb(cfg, folder))
    log_outer_iteration(log, 0)
    log.close()
    assert len(read_metrics(folder)) == 2
    assert capfd.readouterr().err.count("wandb failed and is off from here on: service is gone") == 1


def test_a_tracker_that_did_not_start_does_nothing(cfg, folder, monkeypatch, capfd):
    monkeypatch.setattr(tracking, "start_wandb", lambda *args: None)
    tracker = WandbTracker(cfg, folder, "id", MACHINE)
    tracker.log({"reward": 1}, 2)
    tracker.log_image("film", folder / "no.gif", 2)
    tracker.keep_best({}, 1.0)
    tracker.finish({}, {}, 2)
    tracker.close()
    assert not any(capfd.readouterr())


def test_a_wandb_that_does_not_start_is_reported(cfg, folder, monkeypatch, capfd):
    def fail(**kwargs):
        raise OSError("no network")

    monkeypatch.setattr(wandb, "init", fail)
    cfg.wandb = "offline"
    assert start_wandb(cfg, folder, "id", MACHINE) is None
    assert "continuing without it: no network" in capfd.readouterr().err
    cfg.wandb = "online"
    with pytest.raises(UserError, match="wandb is not online .no network.; .*--wandb offline"):
        start_wandb(cfg, folder, "id", MACHINE)


def test_auto_goes_offline_where_wandb_cannot_be_reached(cfg, folder, monkeypatch):
    modes = []

    def init(cfg, folder, run_id, mode, machine):
        modes.append(mode)
        raise OSError("no network")

    cfg.wandb = "auto"
    monkeypatch.setattr(wandb, "login", lambda prompt: True)
    monkeypatch.setattr(tracking, "init_wandb", init)
    assert start_wandb(cfg, folder, "id", MACHINE) is None
    assert modes == ["online", "offline"]
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    start_wandb(cfg, folder, "id", MACHINE)
    assert modes[2:] == ["offline"]

    def slow(prompt):
        raise OSError("the login got no answer")

    monkeypatch.setattr(wandb, "login", slow)
    start_wandb(cfg, folder, "id", MACHINE)
    assert modes[3:] == ["offline"]


def test_the_variables_of_wandb_name_the_run(cfg, folder, monkeypatch):
    asked = []

    def init(**kwargs):
        asked.append([kwargs[name] for name in ("project", "group", "name")])
        raise OSError("enough")

    monkeypatch.setattr(wandb, "init", init)
    cfg.wandb = "offline"
    start_wandb(cfg, folder, "id", MACHINE)
    for name in ("PROJECT", "RUN_GROUP", "NAME"):
        monkeypatch.setenv(f"WANDB_{name}", f"my {name}")
    start_wandb(cfg, folder, "id", MACHINE)
    cfg.wandb_project = "a"
    start_wandb(cfg, folder, "id", MACHINE)
    assert asked[0] == ["mlsh", "MovementBandits-v0", folder.name]
    assert asked[1:] == [["my PROJECT", "my RUN_GROUP", "my NAME"], ["a", "my RUN_GROUP", "my NAME"]]


def test_wandb_itself_reads_the_entity(cfg, folder, monkeypatch):
    monkeypatch.setenv("WANDB_ENTITY", "my-team")
    cfg.wandb = "offline"
    run = start_wandb(cfg, folder, "id", MACHINE)
    assert run and run.entity == "my-team"
    run.finish()
    wandb.teardown()


def test_wandb_itself_reads_tags_notes_and_the_kind_is_the_job_type(cfg, folder, monkeypatch):
    cfg.wandb = "offline"
    monkeypatch.setenv("WANDB_TAGS", "ablation,short")
    monkeypatch.setenv("WANDB_NOTES", "without a warm-up")
    start_wandb(cfg, folder, "first", MACHINE).finish()
    monkeypatch.setenv("WANDB_JOB_TYPE", "debug")
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    start_wandb(cfg, folder, "second", MACHINE).finish()
    wandb.teardown()
    runs = {x.run_id: x for x in decode(folder)["run"]}
    assert [runs[x].job_type for x in ("first", "mine")] == ["mlsh", "debug"]
    assert [*runs["first"].tags] == ["ablation", "short"] and runs["first"].notes == "without a warm-up"
    assert values_of(runs["first"].config.update)["kind"] == "mlsh"


def test_in_a_sweep_the_id_of_wandb_is_kept_and_printed(command, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    monkeypatch.setenv("WANDB_RUN_ID", "fromagent")
    code, _, err = command("train.py", *TINY[:-1], "offline", "--record", 0, "--out", tmp_path)
    assert code == 0, err
    assert f"wandb sync {tmp_path}/wandb/offline-run-*-fromagent`" in err
    assert len([*tmp_path.glob("wandb/offline-run-*-fromagent")]) == 1
    for name in ("config.json", "results.json"):
        assert json.loads((tmp_path / name).read_text())["run_id"] == "fromagent"
    assert checkpoint.read(tmp_path / "checkpoint.pt")["run_id"] == "fromagent"


def test_a_finished_run_that_is_continued_logs_nothing_at_step_0(cfg, folder, monkeypatch):
    """wandb drops values that are not beyond its last step. Curves without a step would begin a new row of the run."""
    logged = []

    class Fake:
        id, summary = "id", {}

        def log(self, values, step):
            logged.append((step, values["env_steps"]))

        def __getattr__(self, name):
            return lambda *args, **kwargs: None

    monkeypatch.setattr(tracking, "start_wandb", lambda *args: Fake())
    run = run_with_wandb(cfg, folder)
    run.progress["env_steps"] = 336
    MLSHLog(run).close(RESULTS)
    assert logged == [(336, 336)]
    run = run_with_wandb(cfg, folder)
    log = MLSHLog(run)
    log_outer_iteration(log, 0)
    log.close(RESULTS)
    assert [step for step, _ in logged[1:]] == [30, 40, 40] and all(a == b for a, b in logged)


def events_of(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def scalars(folder):
    """Return the numbers in the event files of a run folder: name -> [(env steps, value), …]."""
    events = events_of(folder)
    return {name: [(x.step, x.value) for x in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_has_the_same_names_as_wandb(command, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(WandbTracker, "log", lambda self, values, env_steps: seen.update(values))
    monkeypatch.setattr(WandbTracker, "log_image", lambda *args: None)
    flags = [*TINY[:-1], "offline", "--record", 1, "--out", tmp_path]
    code, _, err = command("train.py", *flags, "--tensorboard")
    assert code == 0, err
    logged = scalars(tmp_path)
    assert {name for name in seen if "/" in name} == set(logged) > {"charts/trained_reward", "losses/sub0_kl"}
    rows = read_metrics(tmp_path)
    shown = [(int(row["env_steps"]), float(row["trained_reward"])) for row in rows if row["task"] == "1"]
    assert dict(logged["tasks/1_trained_reward"]) == pytest.approx(dict(shown))
    tested = {row["task"]: row["return"] for row in json.loads((tmp_path / "results.json").read_text())["test"]}
    assert logged["test/1_return"] == [(int(rows[-1]["env_steps"]), pytest.approx(tested[1]))]
    events = events_of(tmp_path)
    for film in (tmp_path / "videos").glob("00000-*.gif"):
        first = events.Images(f"videos/{film.stem.removeprefix('00000-')}")[0]
        assert first.encoded_image_string == film.read_bytes() and first.width == first.height > 100
    (picture,) = events.Images("test/curves")
    assert picture.encoded_image_string == (tmp_path / "curves.png").read_bytes()
    (text,) = events.Tensors("settings/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    assert "| high_len" in table and '| "mlsh"' in table and '| "MovementBandits-v0"' in table
    assert command("train.py", "-c", "--out", tmp_path, "--tasks", 3)[0] == 0
    steps = [step for step, _ in scalars(tmp_path)["charts/trained_reward"]]
    assert len(steps) == 3 and steps == sorted(set(steps))


def test_without_the_flag_there_are_no_event_files(command, tmp_path):
    assert command("train.py", *TINY, "--record", 0, "--out", tmp_path)[0] == 0
    assert not list(tmp_path.glob("events*"))


def test_rl2_logs_its_losses(command, tmp_path):
    flags = "--env MovementBandits-v0 -N 4 --iterations 2 -K 1 -T 7 --episodes 3 --wandb disabled".split()
    code, _, err = command("train_rl2.py", *flags, "--tensorboard", "--out", tmp_path)
    assert code == 0, err
    logged, rows = scalars(tmp_path), read_metrics(tmp_path)
    names = {f"losses/{name}" for name in LOSSES} | {"training/episodic_length", "training/SPS"}
    assert names | {"charts/trained_reward", "tasks/1_episode_0"} <= set(logged)
    assert logged["training/episodic_length"] == [(84, 7), (168, 7)]
    for name in LOSSES:
        assert [value for _, value in logged[f"losses/{name}"]] == pytest.approx(
            [float(row[name]) for row in rows[::2]], rel=1e-4
        )


def test_online_wandb_that_cannot_be_reached_ends_the_command_before_there_is_a_run(command, tmp_path, monkeypatch):
    def fail(**kwargs):
        raise OSError("no\nnetwork")

    monkeypatch.setattr(wandb, "init", fail)
    flags = [*TINY[:-2], "--record", 0, "--out", tmp_path / "run"]
    for variables in ({}, {"WANDB_MODE": "online"}):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        code, out, err = command("train.py", *flags, *([] if variables else ["--wandb", "online"]))
        assert code == 2 and not out and err.count("\n") == 1
        assert "error: wandb is not online (no network)" in err and "--wandb offline" in err
        files = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
        assert files == {".lock", ".starting"}
    assert command("train.py", *flags, "--wandb", "disabled")[0] == 0  # the folder can be used again


def test_a_name_that_wandb_refuses_ends_the_command_and_can_be_changed(command, tmp_path, monkeypatch):
    flags = [*TINY[:-1], "offline", "--record", 0, "--out", tmp_path / "run"]
    code, out, err = command("train.py", *flags, "--wandb_project", "a/b")
    assert code == 2 and not out and err.count("\n") == 1 and "wandb refuses a name (Invalid project name 'a/b'" in err
    assert not (tmp_path / "run").exists()
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_RUN_ID", "a/b")
        code, out, err = command("train.py", *flags)
        assert code == 2 and "wandb refuses a name" in err
    assert command("train.py", *flags[:-4], "--wandb", "disabled", "--wandb_project", "a/b", *flags[-4:])[0] == 0
    code, _, err = command("train.py", "-c", "--out", tmp_path / "run", "--wandb", "offline")
    assert code == 2 and "wandb refuses a name" in err
    code, _, err = command("train.py", "-c", "--out", tmp_path / "run", "--wandb", "offline", "--wandb_project", "ab")
    assert code == 0, err
    code, _, err = command("evaluate.py", tmp_path / "run", "--wandb", "offline", "--wandb_project", "a/b")
    assert code == 2 and "wandb refuses a name" in err


def test_the_console_output_and_the_code_are_uploaded(tmp_path):
    flags = [*TINY[:-1], "offline", "--record", "0", "--out", str(tmp_path / "a run")]
    run = subprocess.run([sys.executable, "train.py", *flags], cwd=CODE, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (offline_run,) = (tmp_path / "a run" / "wandb").glob("offline-run-*")
    printed = (offline_run / "files" / "output.log").read_text()
    files = f"see results.json and curves.png in {tmp_path / 'a run'}"
    assert "task 1 (blue): return" in printed and files in printed and "outer iteration 2/2 joint" in printed
    (record,) = offline_run.glob("*.wandb")
    assert missing(record, ["train.py", "mlsh/runs/tracking.py", "results.json", "checkpoint.pt"]) == []
