"""Tests and measures MLSH on a GPU, and prints a table for docs/results/speed.md: python benchmarks/gpu.py

It takes at most 8 minutes. `make gpu` installs everything first. Without that, and without a network, it needs PyTorch
with CUDA, NumPy, and the packages in PACKAGES, in any recent version.
"""

import argparse
import contextlib
import dataclasses
import importlib
import itertools
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = "gymnasium mujoco tyro tabulate tqdm filelock packaging imageio pillow glfw matplotlib scipy pytest"

sys.path.insert(0, str(ROOT / "code"))
try:
    for module in ("filelock", "matplotlib", "pytest", "scipy"):  # imported later
        importlib.import_module(module)

    import torch
    from tabulate import tabulate

    from mlsh import compiled, networks
    from mlsh.config import Config
    from mlsh.envs import best_return, make_env
    from mlsh.envs.memory import available_cores
    from mlsh.errors import UserError, run_command
    from mlsh.models import Hierarchy
    from mlsh.optim import Adam
    from mlsh.ppo import update
    from mlsh.rollout import collect, evaluate
    from mlsh.runs.log import MOMENTS
    from mlsh.runs.metrics import read_metrics
    from mlsh.sampling import Streams, balanced_tasks
except ModuleNotFoundError as error:
    print(f"gpu.py: error: {error}; run `make gpu`, or pip install torch {PACKAGES}", file=sys.stderr)
    sys.exit(2)

Measurement = Callable[[float], str]  # from the seconds that it may take to the text of its result
BANDITS, ANTS = "MovementBandits-v0", "AntBandits-v1"
SOLVED = 0.95  # of the best possible return, as in report.py
TINY = {"N": 2, "W": 2, "T": 4, "high_len": 2, "tasks": 2, "epochs": 1}  # settings for --quick
REPEATED = 1.0  # seconds for which a part of an outer iteration is repeated
TESTS = "tests that need a GPU"
GRAPHS = "compiled (CUDA graphs, which train.py does not use)"
COMPILING = 2  # the share of the time that compiling adds


class Failed(Exception):
    """A measurement has failed; the message says why."""


def run_tests(seconds: float) -> str:
    """The result of the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "--noconftest", "-o", "addopts=", "-p", "no:cacheprovider", "-q"]
    done = subprocess.run([*command, "tests/test_gpu.py"], cwd=ROOT, timeout=seconds, capture_output=True, text=True)
    summary = (done.stdout.strip().splitlines() or ["no output"])[-1].strip("= ").partition(" in ")[0]
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
        raise Failed(summary)
    return summary


def time_until_solved(device: str, quick: bool, seconds: float) -> str:
    """The time until train.py with its preset has learned both tasks of MovementBandits."""
    settings = TINY if quick else {}
    flags = [word for name, x in settings.items() for word in (f"--{name}", str(x))]
    command = [sys.executable, "train.py", "--env", BANDITS, "--device", device, "--seed", "0", *flags]
    with tempfile.TemporaryDirectory() as folder:
        fixed = ["--record", "0", "--test_episodes", "2", "--wandb", "disabled", "--out", folder]
        with contextlib.suppress(subprocess.TimeoutExpired):  # the rows written so far may be enough
            done = subprocess.run(
                [*command, *fixed], cwd=ROOT / "code", timeout=seconds, capture_output=True, text=True
            )
            if done.returncode:
                raise Failed((done.stderr.strip().splitlines() or ["train.py failed without a message"])[-1])
        rows = read_metrics(folder)
    if not rows:
        raise TimeoutError
    best = best_return(BANDITS)
    assert best is not None
    solved, last = solved_at(rows, SOLVED * best), rows[-1]
    if solved is None:
        return f"not solved in {float(last['seconds']):.0f} s, {float(last['env_steps']) / 1e6:.1f} M env steps"
    return f"{float(solved['seconds']):.1f} s, {float(solved['env_steps']) / 1e6:.1f} M env steps"


def solved_at(rows: list[dict[str, str]], level: float) -> dict[str, str] | None:
    """The last row of the outer iteration from which on the mean return of every task is at least `level`."""
    found = None
    for _, group in itertools.groupby(rows, key=lambda row: row["iteration"]):
        of_tasks: dict[str, list[float]] = {}
        for row in group:
            of_tasks.setdefault(row["task"], []).append(float(row["trained_reward"]))
            last = row
        solved = all(statistics.mean(returns) >= level for returns in of_tasks.values())
        found = (found or last) if solved else None
    return found


def outer_iteration(cfg: Config, repeated: float) -> tuple[int, float]:
    """The env steps and seconds of an outer iteration. Each of its parts is measured for `repeated` seconds."""
    env, streams = make_env(cfg, cfg.groups * cfg.N), Streams(0, range(cfg.groups))
    env.set_task(balanced_tasks(env, streams, 0, cfg.groups))
    agent, settings = Hierarchy.build(cfg, env), cfg.training_rollout(0)
    agent.master.compiled = agent.sub_policies.compiled = cfg.compile == "on"
    agent.sub_policies.reset(Streams(0, range(cfg.num_sub_policies))(0, "sub-policies"))
    optimizers = Adam(agent.master, cfg.master_lr), Adam(agent.sub_policies, cfg.sub_lr, per_member=True)
    rngs = streams(0, "gpu")

    def new_masters() -> None:
        agent.master.reset(streams(0, "master"))

    def warm_up() -> None:
        rollout = collect(env, agent, rngs, settings, for_sub_policies=False)
        update(agent.master, optimizers[0], rollout.master, rngs, cfg.master_ppo)

    def joint() -> None:
        rollout = collect(env, agent, rngs, settings)
        update(agent.master, optimizers[0], rollout.master, rngs, cfg.master_ppo)
        assert rollout.sub_policies is not None
        update(agent.sub_policies, optimizers[1], rollout.sub_policies, rngs, cfg.sub_ppo(0))
        agent.normaliser.update(rollout.obs)

    def evaluation() -> None:
        evaluate(env, agent, rngs, cfg.rollout)

    parts = {new_masters: 1, warm_up: cfg.W, joint: cfg.U, evaluation: len(MOMENTS)}
    seconds = sum(times * seconds_of(part, cfg.device, repeated) for part, times in parts.items())
    return (cfg.W + cfg.U + len(MOMENTS)) * cfg.T * env.num_envs, seconds


def seconds_of(call: Callable[[], None], device: str, repeated: float) -> float:
    """The mean seconds of a call, which is repeated for `repeated` seconds after a first time, which may compile."""
    call()
    calls, start = 0, now(device)
    while not calls or now(device) < start + repeated:
        call()
        calls += 1
    return (now(device) - start) / calls


def now(device: str) -> float:
    """Wait for the device, and return the time in seconds."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def env_steps_per_second(cfg: Config, repeated: float) -> str:
    """The env steps per second of training; with `cfg.compile` on, the compiled updates are CUDA graphs on a GPU."""
    if cfg.compile == "on":
        import torch._inductor.config as inductor

        inductor.triton.cudagraphs = cfg.device.startswith("cuda")
        networks.MINUS_ONE = networks.MINUS_ONE.to(cfg.device)  # else every replay would wait to copy it from the CPU
    steps, seconds = outer_iteration(cfg, repeated)
    if compiled.FAILED:
        raise Failed(f"PyTorch could not compile: {compiled.FAILED[0]}")
    skipped = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] if cfg.compile == "on" else 0
    return f"{steps / seconds:,.0f} env steps/s" + (f" ({skipped} CUDA graphs skipped)" if skipped else "")


def in_own_process(function: Callable[[], str], seconds: float) -> str:
    """What `function()` returns. It runs in a process of its own, which is killed after so many seconds."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_result, args=(sender, function))
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise TimeoutError
        succeeded, text = receiver.recv()
    except EOFError:
        raise Failed("the process died") from None
    finally:
        process.kill()
        process.join()
    if not succeeded:
        raise Failed(text)
    return text


def send_result(sender: Connection, function: Callable[[], str]) -> None:
    torch.set_flush_denormal(True)  # as the commands do
    try:
        sender.send((True, function()))
    except Exception as error:
        if not isinstance(error, Failed):
            traceback.print_exc()
        sender.send((False, (str(error).strip() or type(error).__name__).splitlines()[0]))


def measurements(args: argparse.Namespace) -> Iterator[tuple[str, float, Measurement]]:
    """What is measured in turn: its name, its share of the time relative to the others, and the measurement."""
    changes: dict[str, Any] = {"device": args.device, **(TINY if args.quick else {})}

    def speed(env: str, **more: Any) -> Measurement:
        cfg = dataclasses.replace(Config.defaults(env), **changes | more)
        return partial(in_own_process, partial(env_steps_per_second, cfg, 0.0 if args.quick else REPEATED))

    yield TESTS, 8, run_tests
    yield f"{BANDITS}: time until both tasks are solved", 8, partial(time_until_solved, args.device, args.quick)
    for groups in args.groups:
        name, share = f"{BANDITS} --groups {groups}", 1.5 + groups / 1000
        yield f"{name}, eager", share, speed(BANDITS, groups=groups, compile="off")
        if compiled.can_compile(args.device):
            yield f"{name}, {GRAPHS}", share + COMPILING, speed(BANDITS, groups=groups, compile="on")
        else:
            yield f"{name}, {GRAPHS}", 0, lambda _: "not measured, because PyTorch finds no compiler"
    yield f"{ANTS}, eager, simulated on {available_cores()} cores", 2, speed(ANTS, compile="off")


def describe(device: str) -> str:
    """The name of a device that PyTorch can use. Raises a UserError for any other."""
    try:
        torch.zeros(1, device=device).item()
    except Exception:  # each kind of device raises its own
        has_cuda = torch.version.cuda or torch.version.hip
        reason = "there is no such GPU" if has_cuda else f"PyTorch {torch.__version__} has no CUDA"
        remedy = "" if has_cuda else "; install one with CUDA (pip install --force-reinstall torch)"
        raise UserError(f"--device {device}: {reason}{remedy}; --device cpu --quick tries the script") from None
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def main() -> None:
    parser = argparse.ArgumentParser(prog="gpu.py", description="Test and measure MLSH on a GPU, and print a table.")
    parser.add_argument("--device", default="cuda", help="Torch device (default: cuda)")
    parser.add_argument("--groups", type=int, nargs="+", default=[8, 64, 512, 4096], help="numbers of task groups")
    parser.add_argument("--seconds", type=float, default=450, help="time for everything (default: 450)")
    parser.add_argument("--quick", action="store_true", help="use tiny runs, to check that the script works")
    args = parser.parse_args()
    if min(args.groups) < 1 or args.seconds <= 0:
        raise UserError("--groups and --seconds must be positive")
    sys.warnoptions.append("ignore:resource_tracker")  # a process that is killed leaves a semaphore of tqdm behind
    machine = f"{describe(args.device)}, {available_cores()} cores, PyTorch {torch.__version__}"
    deadline = time.monotonic() + args.seconds
    rows, failed, planned = [], False, list(measurements(args))
    for i, (name, share, measure) in enumerate(planned):
        seconds = max(0.0, deadline - time.monotonic()) * share / sum(x for _, x, _ in planned[i:])
        try:
            result = measure(seconds)
        except (TimeoutError, subprocess.TimeoutExpired):
            result, failed = f"not reached in {seconds:.0f} s", failed or name == TESTS
        except Failed as error:
            result, failed = f"failed: {error}", True
        print(f"{name}: {result}", file=sys.stderr, flush=True)
        rows.append((name, result))
    print(tabulate(rows, (machine, "result"), "github"))
    if failed:
        raise UserError("some measurements failed; see above")


if __name__ == "__main__":
    run_command(main)
