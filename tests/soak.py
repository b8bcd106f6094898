"""Kill commands at random moments and type wrong inputs, and count what held: make soak

A command that was killed with SIGKILL is typed again, and its files must be those of a command that nobody killed.
A wrong input must end with one line, an exit code that is not zero, and no traceback.
"""

import functools
import importlib
import itertools
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
import tyro
from tabulate import tabulate
from torch.utils._pytree import tree_flatten

TESTS = Path(__file__).absolute().parent
CODE = TESTS.parent / "code"
sys.path[:0] = [str(CODE), str(TESTS)]
from mlsh.baselines.option_critic import OptionCriticConfig  # noqa: E402
from mlsh.baselines.rl2 import RL2Config  # noqa: E402
from mlsh.config import Config  # noqa: E402
from mlsh.errors import UserError  # noqa: E402
from mlsh.harness import analyses  # noqa: E402
from mlsh.harness.study import Study  # noqa: E402
from mlsh.runs import checkpoint  # noqa: E402
from mlsh.runs.metrics import read_metrics  # noqa: E402
from mlsh.settings import fields_of  # noqa: E402

TASKS = 40
FLAGS = (
    f"--tasks {TASKS} -N 2 -W 2 -U 1 -K 2 -T 7 --high_len 3 --groups 2 --hidden 256 --record 15 --test_episodes 2 "
    "--wandb disabled --save_seconds 0"
).split()
BASE = "-N 2 -T 7 --hidden 8 --seed 3 --wandb disabled --save_seconds 0"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (CODE, TESTS)))}


# A run of train.py that is killed and continued


def start(folder):
    """Start a run in the folder, or continue the one that has a checkpoint there."""
    flags = ["-c", "--out", folder] if (folder / "checkpoint.pt").exists() else [*FLAGS, "--out", folder]
    return launch(["train.py", *flags])


def launch(words):
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, cwd=CODE, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def result(folder):
    """Return what a run has learned and written, except times and names: a list of tensors and plain values."""
    ignored = ("seconds", "run_id", "config")
    data = checkpoint.load(folder, [Config, RL2Config, OptionCriticConfig])
    data = {name: x for name, x in data.items() if name not in ignored}
    rows = [[(k, v) for k, v in row.items() if k != "seconds"] for row in read_metrics(folder)]
    results = json.loads((folder / "results.json").read_text())
    results = [(name, x) for name, x in results.items() if name not in ignored]
    return tree_flatten([data, rows, results])[0]


def same(a, b):
    if len(a) != len(b):
        return False
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))


def finish(run):
    _, err = run.communicate()
    if run.returncode:
        raise SystemExit(f"a run failed: {err.decode()}")


def soak(folder, runs, kills, rng):
    """Kill each of `runs` runs `kills` times, and then let it end.

    Half of the kills come at any moment, including the start-up, the other half after a run has made progress. Returns
    the number of kills, the number of them that hit a run before its end, and the number of runs that ended
    bit-identical to a run that was never killed.
    """
    begin = time.monotonic()
    finish(start(folder / "whole"))
    duration = time.monotonic() - begin
    print(f"one run takes {duration:.1f} s", flush=True)
    whole, identical, interrupted = result(folder / "whole"), 0, 0
    for i in range(runs):
        part = folder / str(i)
        for _ in range(kills):
            rows = len(read_metrics(part))
            run = start(part)
            if rng.random() < 0.5:
                time.sleep(rng.uniform(0, duration))
            else:
                while run.poll() is None and len(read_metrics(part)) <= rows:
                    time.sleep(0.005)
                time.sleep(rng.uniform(0, duration / 2 / kills))
            interrupted += run.poll() is None
            run.kill()
            run.communicate()
        finish(start(part))
        equal = same(whole, result(part))
        identical += equal
        print(f"run {i}: {'identical' if equal else 'DIFFERENT'}", flush=True)
    return runs * kills, interrupted, identical


# All commands, killed and typed again


class Killed(NamedTuple):
    """A command to kill, and how often."""

    words: Callable[[Path], list]  # the command that writes to a folder
    result: Callable[[Path], list]  # what it has written there
    chains: int  # times that it is killed, typed again and let end
    kills: int  # in each chain


def content(*names):
    """The function that returns the content of these files in a folder."""
    return lambda folder: [(folder / name).read_bytes() for name in names]


def study_result(folder):
    return [*result(folder / "mlsh-0.01-1"), *result(folder / "mlsh-0.01-2"), *content("training.png")(folder)]


def run_study(folder):
    """Two runs and a figure, as the scripts in code/studies make them."""
    command = "train.py --tasks 2 -W 1 -U 1 --record 0 -K 2 --groups 2 --test_episodes 2 --high_len 3 -N 2 -T 7"
    tasks = {"all tasks": slice(None)}
    figure = functools.partial(analyses.compare_training, figure="training.png", panels=tasks, columns=tasks)
    study = Study("soak", [figure], {"mlsh": f"{command} --wandb disabled --master_lr"}, [0.01], seeds=[1, 2])
    study.best_return, study.folder = 43.8, Path(folder)
    study.reproduce(figures=folder)


def commands(base):
    """The commands to kill; `base` is the folder of a finished run of train.py."""
    rl2 = f"{BASE} --iterations 60 --episodes 2 --minibatches 2".split()
    critic = f"{BASE} --tasks 60 --rollouts 2".split()
    learn = "-N 2 --updates 20 --seeds 2 --eval_episodes 2".split()
    figures = ["--csv", "x.csv", "--html", "x.html", "--figures", "."]
    reported = content("x.csv", "x.html", "trained_reward_MovementBandits-v0.png")
    films = content("x-untrained.gif", "x-trained.gif")
    return {
        "train_rl2.py": Killed(lambda out: ["train_rl2.py", *rl2, "-c", "--out", out], result, 6, 4),
        "train_option_critic.py": Killed(
            lambda out: ["train_option_critic.py", *critic, "-c", "--out", out], result, 6, 4
        ),
        "evaluate.py": Killed(lambda out: ["evaluate.py", base, *learn, "--out", out], content("adaptation.csv"), 5, 3),
        "render.py": Killed(lambda out: ["render.py", base, "--updates", 9, "--out", out / "x.gif"], films, 5, 3),
        "report.py": Killed(
            lambda out: ["report.py", base, *(x if x.startswith("-") else out / x for x in figures)], reported, 4, 3
        ),
        "a study": Killed(lambda out: [TESTS / "soak.py", "--study", out], study_result, 3, 2),
    }


def kill_and_repeat(command, folder, rng):
    """Kill a command in each of its chains. Returns as `soak` does."""
    begin = time.monotonic()
    (folder / "whole").mkdir(parents=True)
    finish(launch(command.words(folder / "whole")))
    duration = time.monotonic() - begin
    whole, identical, tried, interrupted = command.result(folder / "whole"), 0, 0, 0

    def done(part):
        try:
            return same(whole, command.result(part))
        except (OSError, UserError):  # files are missing
            return False

    for i in range(command.chains):
        part = folder / str(i)
        part.mkdir()
        for _ in range(command.kills):
            if done(part):  # evaluate.py does not write over what is finished
                continue
            run = launch(command.words(part))
            time.sleep(rng.uniform(0, duration))
            tried += 1
            interrupted += run.poll() is None
            run.kill()
            run.communicate()
        if not done(part):
            finish(launch(command.words(part)))
        identical += done(part)
    return tried, interrupted, identical


# Wrong inputs


def attempt(words, folder):
    """Type a command in a process of its own, forked from this one, which has everything imported.

    Returns None if it ended as a wrong input has to, and otherwise what it did.
    """
    err = folder / "err"
    pid = os.fork()
    if not pid:
        code = 1
        try:
            for number, path in ((1, folder / "out"), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.chdir(folder)
            signal.alarm(120)
            sys.argv = [str(word) for word in words]
            runpy.run_path(str(CODE / words[0]), run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    lines = err.read_text(errors="replace").splitlines() or [""]
    told = [line for line in lines if line.startswith(f"{words[0]}: error: ")]
    if code == 2 and len(told) == 1 and told[0] == lines[-1]:
        return None
    return f"exit code {code}, {len(told)} lines with an error, the last line: {lines[-1]:.150}"


TRAIN = {
    "train.py": (Config, f"{BASE} --tasks 1 -W 1 -U 1 --record 0 --test_episodes 2 --groups 2"),
    "train_rl2.py": (RL2Config, f"{BASE} --iterations 1 --episodes 2 --minibatches 2"),
    "train_option_critic.py": (OptionCriticConfig, f"{BASE} --tasks 1 --rollouts 1"),
}
COMBINATIONS = {
    "train.py": ["-W 0 -U 0", "--num_sub_policies 0 -U 1", "--abacus 1", "-N", "-c", "--device abacus", "more"],
    "train_rl2.py": ["--minibatches 99", "--abacus", "-c", "--device abacus"],
    "train_option_critic.py": ["--shared some", "--num_options 0", "-c"],
    "evaluate.py": ["", "BASE --updates -1", "BASE --tasks 9", "BASE BASE", "BASE --seeds x", "BASE --held_out"],
    "render.py": ["", "BASE --task 9", "BASE --episodes 0", "BASE --every x", "BASE --out x.txt", "BASE --updates -1"],
    "report.py": ["", "BASE --abacus", "BASE --figures", "nowhere"],
}


def wrong_flags(folder, base):
    for script, (kind, words) in TRAIN.items():
        for field in fields_of(kind):
            bad = {int: ["x", "-1", "0.5"], float: ["x", "nan"], bool: []}.get(type(field.default), [])
            for value in bad:
                yield [script, *words.split(), f"--{field.name}={value}", "--out", folder / "new"]
    for script, endings in COMBINATIONS.items():
        words = TRAIN[script][1].split() if script in TRAIN else []
        for ending in endings:
            yield [script, *words, *(base if word == "BASE" else word for word in ending.split())]


STRANGE = r"""
import gymnasium as gym, numpy as np
from gymnasium.spaces import Box, Discrete, Text

class Strange(gym.Env):
    train_tasks = [0, 1]
    observation_space, action_space = Box(-1, 1, (2,)), Discrete(2)
    def set_task(self, task): pass
    def reset(self, seed=None, options=None): return np.zeros(2, np.float32), {}
    def step(self, action): return np.zeros(2, np.float32), 0.0, False, False, {}

def fail(*args, **kwargs): raise ZeroDivisionError("two\nlines")
def returns(*values): return lambda self, *args, **kwargs: values[0] if len(values) == 1 else values

zeros = np.zeros(2, np.float32)
WAYS = dict(
    plain={}, no_tasks=dict(train_tasks=None), empty_tasks=dict(train_tasks=[]), set_task_missing=dict(set_task=None),
    set_task_fails=dict(set_task=fail), reset_fails=dict(reset=fail), reset_none=dict(reset=returns(None)),
    reset_shape=dict(reset=returns(np.zeros(3, np.float32), {})), reset_nan=dict(reset=returns(zeros * np.nan, {})),
    reset_text=dict(reset=returns("x", {})), step_fails=dict(step=fail), step_none=dict(step=returns(None)),
    step_six=dict(step=returns(zeros, 0.0, False, False, {}, 0)), step_two=dict(step=returns(zeros, 0.0)),
    reward_none=dict(step=returns(zeros, None, False, False, {})),
    reward_nan=dict(step=returns(zeros, np.nan, False, False, {})),
    reward_text=dict(step=returns(zeros, "x", False, False, {})),
    reward_two=dict(step=returns(zeros, zeros, False, False, {})),
    obs_shape=dict(step=returns(np.zeros(3, np.float32), 0.0, False, False, {})),
    obs_nan=dict(step=returns(zeros * np.nan, 0.0, False, False, {})),
    obs_none=dict(step=returns(None, 0.0, False, False, {})),
    no_obs_space=dict(observation_space=None), text_space=dict(observation_space=Text(9)),
    no_action_space=dict(action_space=None), text_actions=dict(action_space=Text(9)),
)
for name, way in WAYS.items():
    gym.register(f"{name}-v0", lambda way=way: type("Strange", (Strange,), way)(), max_episode_steps=7)
"""
MODULES = {"strange": STRANGE, "syntax": "def", "raises": "1 / 0", "exits": "import sys; sys.exit(3)", "plain": ""}
UNKNOWN = ["Nothing-v0", "nothing:X-v0", "syntax:X-v0", "raises:X-v0", "exits:X-v0", "plain:X-v0", ":X-v0", "..x:X-v0"]


def wrong_environments(folder, base):
    strange = importlib.import_module("strange")  # type_wrong has written it
    names = [f"strange:{way}-v0" for way in strange.WAYS if way != "plain"]
    for script, (_, words) in TRAIN.items():
        for env in [*UNKNOWN, *names]:
            yield [script, *words.split(), "--env", env, "--out", folder / "new"]
    for script in ("evaluate.py", "render.py"):
        for env in UNKNOWN:
            yield [script, base, "--env", env, "--out", folder / "new.gif"]


SETTINGS = {"N": -5, "T": 0, "master_lr": float("nan"), "hidden": 2**62, "gamma": 2.0, "compile": "x", "abacus": 1}
SETTINGS |= {"env": None, "W": "3", "seed": -1, "num_sub_policies": -1, "clip": float("inf"), "high_len": 2**70}
EDITS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda x: b"",
    "half": lambda x: x[: len(x) // 2],
    "zeros": lambda x: bytes(len(x)),
    "not UTF-8": lambda x: b"\xff\xfe" + x,
    "list": lambda x: b"[1]",
    "null": lambda x: b"null",
    "text": lambda x: x.replace(b":", b": x,").replace(b",", b",x,"),
    "NaN": lambda x: x.replace(b"0.", b"NaN, 0.").replace(b": 0", b": NaN"),
}


def wrong_files(folder, base):
    run = folder / "run"
    readers = [["train.py", "-c", "--out", run], ["evaluate.py", run, "--out", folder / "new"], ["render.py", run]]
    damaged = [("checkpoint.pt", x) for x in [*EDITS][:6]] + [("config", x) for x in SETTINGS]
    for (name, what), words in itertools.product(damaged, readers):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(base, run)
        path = run / "checkpoint.pt"
        if name == "config":
            data = torch.load(path, weights_only=True)
            data["config"][what] = SETTINGS[what]
            torch.save(data, path)
        else:
            path.write_bytes(EDITS[what](path.read_bytes()))
        yield words
    for name, what in itertools.product(("config.json", "results.json", "metrics.csv"), EDITS):
        if name != "metrics.csv" or what not in ("text", "NaN"):  # which would leave it right
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(base, run)
            (run / name).write_bytes(EDITS[what]((run / name).read_bytes()))
            yield ["report.py", run]


def wrong_folders(folder, base):
    (folder / "file").write_text("x")
    (folder / "full").mkdir(exist_ok=True)
    (folder / "full" / "x").touch()
    (folder / "linked").mkdir(exist_ok=True)
    (folder / "linked" / "videos").symlink_to(folder / "full")
    shutil.copytree(base, folder / "evaluated")
    (folder / "evaluated" / "adaptation.csv").touch()
    bad = [folder / "file", folder / "file" / "new", Path("/proc/nothing/new"), folder / ("x" * 300)]
    for script, (_, words) in TRAIN.items():
        for out in (*bad, folder / "full", folder / "linked", base):
            yield [script, *words.split(), "--out", out]
    for script in ("evaluate.py", "render.py", "report.py"):
        for run in (*bad, folder / "full" if script != "report.py" else folder / "nothing", folder / "nothing"):
            yield [script, run]
    for out in (*bad, folder / "evaluated"):
        yield ["evaluate.py", base, "--updates", 1, "--out", out]
    for out in (folder / "nothing" / "x.gif", folder / "x.png"):
        yield ["render.py", base, "--updates", 1, "--out", out]
    for flag in ("--csv", "--html"):
        for out in (folder / "file" / "x", Path("/proc/nothing")):
            yield ["report.py", base, flag, out]


WRONG = {"flags": (wrong_flags, 75), "environments": (wrong_environments, 50)}
WRONG |= {"files": (wrong_files, 50), "folders": (wrong_folders, 25)}


def type_wrong(folder, base, rng, share):
    """Type a share of the wrong inputs of each kind, drawn at random. Returns kind -> inputs, and those that held."""
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    sys.path.insert(0, str(folder))
    found = {}
    for kind, (generate, number) in WRONG.items():
        inputs = sum(1 for _ in generate(fresh(folder / kind), base))
        chosen, held = {*rng.sample(range(inputs), round(number * share))}, 0
        for i, words in enumerate(generate(fresh(folder / kind), base)):
            if i in chosen:
                failure = attempt(words, folder)
                held += not failure
                if failure:
                    print(f"{' '.join(map(str, words))}: {failure}", flush=True)
        found[kind] = len(chosen), held
    return found


def fresh(folder):
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


@dataclass
class Args:
    """Kill commands and type wrong inputs, and print what held. Takes about half an hour."""

    quick: bool = False
    """A few of each, in about a minute."""
    seed: int = 0
    """Seed of the moments of the kills and of the choice of wrong inputs."""
    study: str = ""
    """Run the small study that is killed, in this folder."""


def main(args):
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder, base, rows = Path(temporary), Path(temporary) / "base", []
        finish(launch(["train.py", *TRAIN["train.py"][1].split(), "--record", 1, "--out", base]))
        if not args.quick:
            rows.append(["train.py", *soak(fresh(folder / "train"), 16, 4, rng), 16])
        for name, command in commands(base).items():
            if args.quick:
                command = command._replace(chains=1, kills=1)
            if not args.quick or name in ("evaluate.py", "report.py"):
                rows.append([name, *kill_and_repeat(command, folder / name.replace(" ", "-"), rng), command.chains])
                print(*rows[-1], flush=True)
        tried = ["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])]
        inputs = type_wrong(fresh(folder / "wrong"), base, rng, 0.1 if args.quick else 1)
    header = ["command", "kills", "before its end", "identical in the end", "of so many"]
    print(tabulate([*rows, tried], header, "github"), end="\n\n")
    total = [sum(column) for column in zip(*inputs.values(), strict=True)]
    rows = [[kind, *counts] for kind, counts in (*inputs.items(), ("all", total))]
    print(tabulate(rows, ["wrong input", "typed", "one line and an exit code"], "github"))
    return tried[3] == tried[4] and total[0] == total[1]


if __name__ == "__main__":
    arguments = tyro.cli(Args, description=__doc__)
    if arguments.study:
        run_study(arguments.study)
    else:
        sys.exit(not main(arguments))
