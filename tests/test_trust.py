"""Run folders from somebody else, and damaged ones: no code of theirs runs, nothing is written elsewhere."""

import json
import math
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch

import mlsh
from conftest import CODE, TINY
from mlsh.errors import UserError
from mlsh.harness.finished import read_results, read_run
from mlsh.harness.jobs import Job
from mlsh.harness.study import Study, read_adaptation, training_curve

SOAK = CODE.parent / "tests" / "soak.py"
SMALL = [*TINY, "--hidden", "8", "--record", "1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run; copy it before changing it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = [sys.executable, CODE / "train.py", *SMALL, "--out", folder]
    subprocess.run(list(map(str, words)), check=True, capture_output=True)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def edit(folder, **settings):
    """Change settings in a run folder's checkpoint and config.json."""
    data = torch.load(folder / "checkpoint.pt", weights_only=True)
    data["config"] |= settings
    torch.save(data, folder / "checkpoint.pt")
    saved = json.loads((folder / "config.json").read_text())
    saved["config"] |= settings
    (folder / "config.json").write_text(json.dumps(saved))


def commands(folder, out):
    """The commands that read a run folder, and write to `out`."""
    return {
        "render.py": [folder, "--updates", 1, "-N", 2, "--out", out / "x.gif"],
        "evaluate.py": [folder, "--updates", 1, "--seeds", 1, "-N", 2, "--out", out / "evaluation"],
        "train.py": ["-c", "--out", folder, "--tasks", 3],
        "report.py": [folder, "--html", out / "x.html"],
    }


def test_a_run_that_was_trained_on_a_gpu_is_used_without_one(run, command, tmp_path):
    edit(run, device="cuda")
    for script, words in commands(run, tmp_path).items():
        words += ["--device", "cpu"] if script == "train.py" else []
        code, _, err = command(script, *words)
        assert code == 0, err
    edit(run, device="cuda")
    assert mlsh.load(run).sub_policies.device.type == "cpu"
    if not torch.cuda.is_available():
        code, _, err = command("train.py", "-c", "--out", run)
        assert code == 2 and "--device cuda is not available here; use cpu" in err


PAYLOAD = """
import pathlib
pathlib.Path({ran!r}).touch()
import gymnasium as gym
same = gym.spec("MovementBandits-v0")
if "{name}-v0" not in gym.registry:
    gym.register("{name}-v0", same.entry_point, vector_entry_point=same.vector_entry_point,
                 max_episode_steps=50, kwargs=same.kwargs)
"""


@pytest.fixture
def payload(monkeypatch, tmp_path):
    """payload(path) writes a module that leaves a file when it is imported; returns that file and an environment."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(path):
        name = f"Payload{len(before)}{path.stem}"
        path.write_text(PAYLOAD.format(ran=str(tmp_path / "ran"), name=name))
        return tmp_path / "ran", f"{name}-v0"

    yield write
    for name in set(sys.modules) - before:
        if name.startswith(("run", "payload", "mine")):
            del sys.modules[name]


@pytest.mark.parametrize("where", ["run.payload", "payload", "run.videos.payload", "mlsh.scripts.payload"])
def test_a_module_in_a_run_folder_is_never_imported(run, command, tmp_path, payload, monkeypatch, where):
    path = run / ("videos/payload.py" if "videos" in where else "payload.py")
    ran, env_id = payload(path)
    if where == "payload":
        monkeypatch.syspath_prepend(run)
    if where == "mlsh.scripts.payload":
        monkeypatch.setattr("mlsh.scripts.__path__", [str(run)])
    env = f"{where}:{env_id}"
    edit(run, env=env)
    for script, words in commands(run, tmp_path).items():
        named = ["--env", env] if script == "render.py" and "videos" in where else []
        code, _, err = command(script, *words, *named)
        assert not ran.exists()
        if script == "report.py":
            assert code == 0, err
        else:
            assert code == 2 and "is not imported from the run folder" in err and "Traceback" not in err, err
    with pytest.raises(UserError, match="is not imported from the run folder"):
        mlsh.load(run)
    assert not ran.exists()


@pytest.mark.parametrize("script", ["render.py", "evaluate.py", "train.py", "mlsh.load"])
def test_a_module_that_only_a_checkpoint_names_is_announced(run, command, tmp_path, payload, capfd, script):
    ran, env_id = payload(tmp_path / "mine.py")
    env = f"mine:{env_id}"
    edit(run, env=env)
    if script == "mlsh.load":
        mlsh.load(run)
        err = capfd.readouterr().err
        assert err.startswith("importing the module 'mine', which ") and err.count("\n") == 1
        mlsh.load(run)
        assert not capfd.readouterr().err  # it is imported already
        return
    words = commands(run, tmp_path)[script]
    code, _, err = command(script, *words, "--env", env)
    assert code == 0 and ran.exists() and "importing" not in err, err
    del sys.modules["mine"]
    shutil.rmtree(tmp_path / "evaluation", ignore_errors=True)
    code, _, err = command(script, *words)
    assert code == 0 and err.startswith(f"importing the module 'mine', which {run}/checkpoint.pt names; "), err
    assert f"use --env {env}," in err


def test_reports_of_environments_from_elsewhere_import_nothing_and_show_all_flags(command, tmp_path, payload):
    """Their defaults follow from the environment, so that only all flags together repeat the run."""
    ran, env_id = payload(tmp_path / "mine.py")
    flags = ["--env", f"mine:{env_id}", *SMALL[2:], "--tasks", 1, "--record", 0]
    code, _, err = command("train.py", *flags, "--out", tmp_path / "run")
    assert code == 0, err
    ran.unlink()
    del sys.modules["mine"]
    code, _, err = command("report.py", tmp_path / "run", "--html", tmp_path / "x.html")
    assert code == 0 and not ran.exists(), err
    text = (tmp_path / "x.html").read_text()
    assert all(f"{flag} " in text for flag in ("-T 7", "--gamma 0.99", "--clip 0.2", "--num_sub_policies 2"))


def test_links_in_a_run_folder_are_not_followed(run, command, tmp_path):
    """Each name that a command writes in a run folder, and each that it wrote to on the way in version 0.4."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    names = ["checkpoint.pt", "metrics.csv", "config.json", "results.json", "curves.png", "adaptation.csv"]
    names += ["adaptation.png", "task-0-untrained.gif", "task-0-trained.gif", "x.html", "trained_reward_x.png"]
    films = [f"0000{i}-{key}-video-{task}" for i in (2, 3) for key in ("pretrain", "warmup") for task in "01"]
    names += [f"videos/{film}.gif" for film in films]
    (run / "results.json").unlink()
    (run / "curves.png").unlink()
    for name in names:
        path, target = run / name, elsewhere / name.replace("/", "-")
        target.write_text("precious")
        (path.parent / f"{path.name}.tmp").symlink_to(target)
        (path.parent / f".{path.name}").symlink_to(target)
        if not path.exists():
            path.symlink_to(target)
    for script, words in (
        ("train.py", ["-c", "--out", run, "--tasks", 4]),
        ("evaluate.py", [run, "--updates", 1, "--seeds", 1, "-N", 2]),
        ("render.py", [run, "--updates", 1, "-N", 2]),
        ("report.py", [run, "--html", run / "x.html", "--csv", run / "x.csv", "--figures", run, "--name", "x"]),
    ):
        if script == "evaluate.py":
            (run / "adaptation.csv").unlink()
        code, _, err = command(script, *words)
        assert code == 0, err
        assert {path.read_text() for path in elsewhere.iterdir()} == {"precious"}, script


@pytest.mark.parametrize("name", ["videos", "wandb", "adaptation", "adaptation/run"])
def test_a_linked_folder_in_a_run_folder_is_refused(run, command, tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (run / name).parent.mkdir(exist_ok=True)
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).symlink_to(tmp_path / "elsewhere")
    for script, words in (("train.py", ["-c", "--out", run]), ("evaluate.py", [run, "--tensorboard"])):
        code, _, err = command(script, *words)
        assert code == 2 and f"{name} is a link that leads elsewhere" in err, err
    assert not [*(tmp_path / "elsewhere").iterdir()]


def test_a_linked_film_is_not_put_on_a_page(run, command, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret" * 99)
    film = next((run / "videos").glob("00001-*.gif"))
    film.unlink()
    film.symlink_to(tmp_path / "secret")
    code, _, err = command("report.py", run, "--html", tmp_path / "x.html")
    assert code == 0 and "c2VjcmV0" not in (tmp_path / "x.html").read_text(), err


def test_names_from_results_are_no_paths(run, command, tmp_path):
    path = run / "results.json"
    path.write_text(path.read_text().replace("MovementBandits-v0", "../../x"))
    rows = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(re.sub(r"(?m)^(\d+,\d+,)0,", r"\1../../y,", rows))
    code, _, err = command("report.py", run, "--figures", tmp_path / "a" / "b")
    assert code == 0 and not [*tmp_path.glob("*.png")] and len([*(tmp_path / "a" / "b").iterdir()]) == 3, err


@pytest.mark.parametrize("how", ["compressed", "expanded"])
def test_a_small_checkpoint_does_not_fill_the_memory(run, how):
    path = run / "checkpoint.pt"
    if how == "expanded":
        data = torch.load(path, weights_only=True)
        data["more"] = torch.zeros(1).expand(10**6, 10**6)
        torch.save(data, path)
    else:
        with zipfile.ZipFile(path) as stored, zipfile.ZipFile(run / "x", "w", zipfile.ZIP_DEFLATED) as compressed:
            for name in stored.namelist():
                compressed.writestr(name, stored.read(name) + b"\0" * 10**7 * name.endswith("data/0"))
        (run / "x").replace(path)
        assert path.stat().st_size < 10**6
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged .*larger than"):
        mlsh.load(run)


BAD_SETTINGS = {
    "N": -5, "T": 0, "W": -1, "groups": 0, "hidden": 0, "num_sub_policies": -2, "epochs": 2**63, "master_lr": math.nan,
    "sub_lr": math.inf, "clip": -0.1, "gamma": 1.5, "reward_scale": 0.0, "compile": "sometimes", "wandb": "perhaps",
    "abacus": 1, "high_len": "3", "env": None, "seed": 0.5, "normalise": 1, "high_len ": 3,
}  # fmt: skip


def test_settings_that_cannot_work_are_refused_by_every_reader(run, command, tmp_path):
    for i, (name, value) in enumerate(BAD_SETTINGS.items()):
        folder = shutil.copytree(run, tmp_path / str(i))
        edit(folder, **{name: value})
        with pytest.raises(UserError) as error:
            mlsh.load(folder)
        assert str(error.value).count("\n") == 0 and str(folder) in str(error.value)
        for script, words in commands(folder, tmp_path).items():
            if script in ("report.py", [*commands(folder, tmp_path)][i % 3]):
                code, _, err = command(script, *words)
                assert code == 2 and err.count("\n") == 1 and str(folder) in err and "Traceback" not in err, err


def test_an_environment_whose_name_could_control_the_terminal_is_refused(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "copy")
    edit(folder, env="mine\x1b[2J:X-v0")
    with pytest.raises(UserError, match="--env is .*: use printable characters") as error:
        mlsh.load(folder)
    assert str(error.value).isprintable()


def damaged(text, path):
    """Damaged versions of a file, by what is wrong with them."""
    versions = {"empty": b"", "half": text[: len(text) // 2], "not UTF-8": b"\xff\xfe" + text, "zeros": b"\0" * 999}
    if path.suffix == ".csv":
        header, row, *rows = text.decode().splitlines()
        names, cells = header.split(","), row.split(",")
        for name in ("iteration", "task", "trained_reward", "env_steps", "seconds"):
            at = names.index(name)
            dropped = [",".join(x for i, x in enumerate(line.split(",")) if i != at) for line in (header, row, *rows)]
            versions[f"no {name}"] = "\n".join([*dropped, ""]).encode()
            for value in ("", "x", "nan", "1e999", "\0") if name != "task" else ():
                changed = ",".join(value if i == at else x for i, x in enumerate(cells))
                versions[f"{name} {value!r}"] = "\n".join([header, changed, *rows, ""]).encode()
        return versions | {"header": f"{header}\n".encode()}
    whole = json.loads(text)
    versions |= {"list": b"[]", "text": b'"x"', "number": b"3", "null": b"null", "deep": b"[" * 99999}

    def visit(part, at):
        for key in part if isinstance(part, dict) else range(len(part)):
            if path.name == "config.json" and at and at[0] in ("machine", "preset", "config") and len(at) > 0:
                continue
            value = part[key]
            for wrong in ("x", [], {}, None, math.nan, 10**400, -1.5e308):
                if type(wrong) is not type(value):
                    part[key] = wrong
                    versions[f"{[*at, key]} {wrong!r:.9}"] = json.dumps(whole).encode()
            part[key] = value
            if isinstance(value, dict | list):
                visit(value, [*at, key])

    visit(whole, [])
    return versions


@pytest.mark.parametrize("name", ["config.json", "results.json", "metrics.csv"])
def test_damaged_files_are_told_in_one_line(run, command, tmp_path, name):
    """Every reader of a run folder either works or ends with one line. What cannot be right is refused."""
    path, accepted = run / name, []
    versions = damaged(path.read_bytes(), path)
    for what, content in versions.items():
        path.write_bytes(content)
        try:
            accepted += [what] * bool(read_run(run))
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error), what
    assert not {"empty", "half", "not UTF-8", "zeros", "list", "deep", "header"} & {*accepted}
    for what in accepted[:: len(accepted) // 5 or 1]:  # what report.py does not need may be anything
        path.write_bytes(versions[what])
        code, _, err = command("report.py", run, "--csv", tmp_path / "x.csv")
        assert code == 0 and not err, what
    path.unlink()
    path.mkdir()
    code, _, err = command("report.py", run)
    assert code == 2 and str(path) in err and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.very_slow
def test_a_few_kills_and_wrong_inputs_of_the_soak():
    done = subprocess.run([sys.executable, SOAK, "--quick"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all " in done.stdout


def test_studies_report_damaged_files_in_one_line(run, tmp_path):
    study, job = Study("x", []), Job("run", "train.py")
    study.folder = tmp_path
    header = "run,task,seed,update,env_steps,return,best_return"
    readers = {
        "adaptation.csv": (lambda: read_adaptation(study, job), [header, f"{header}\na,b,0,0,x,1,\n", "task\nb\n"]),
        "metrics.csv": (lambda: training_curve(study, job), ["task,train_env_steps\n0,9\n"]),
        "results.json": (lambda: read_results(run), ["{", "{}", '{"test": [{}]}']),
    }
    for name, (read, contents) in readers.items():
        for content in (*contents, "\0", b"\xff", ""):
            (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
            with pytest.raises(UserError) as error:
                read()
            assert str(run / name) in str(error.value) and "\n" not in str(error.value), (name, content)
