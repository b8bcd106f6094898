"""How fast new masters learn tasks over a run's sub-policies: python evaluate.py --help"""

import contextlib
import csv
import dataclasses
import io
import secrets
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import tyro
from filelock import FileLock, Timeout
from tabulate import tabulate

from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.envs.memory import available_memory
from mlsh.errors import UserError, command
from mlsh.meta_test import LEARNERS, Measures, adaptation_curves, transferred
from mlsh.runs import checkpoint
from mlsh.runs.files import make_folder, refuse_links, safe_name, write_whole, writing
from mlsh.runs.plots import draw_bands, steps_to_fraction
from mlsh.runs.run import check_tracking, start_trackers
from mlsh.sampling import Streams, distinct, drawn_tasks, find_task
from mlsh.settings import DESCRIBED, AdaptationSettings, Count, CountOrZero, TrackingSettings, cli

COLUMNS = """Columns of the table, which shows mean returns over the seeds:
    after n             return after n updates of the master
    to 90 %, to 95 %    env steps until the return is at 90 % or 95 % of the last one (95 % of -0.1 is -0.105)
    area                mean of the return over the env steps
    final_…             with --eval_episodes: means of what the environment reports at the last step of an episode

Columns of adaptation.csv, with one row per run, task, seed and update:
    env_steps           env steps of the master on the task so far
    return              mean return of the episodes that follow
    best_return         the best possible return on the task, where it is known
    final_…             as in the table"""
DRAWN = 20  # tasks in the figure
UPDATES_SHOWN = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass
class Args(AdaptationSettings, TrackingSettings):
    """Learn tasks with the networks of finished runs, and write the return after every update.

    For an MLSH run, new masters are trained over the frozen sub-policies, or with --sub_kl over copies that learn, too.
    A shared policy (--num_sub_policies 1) is fine-tuned, and a run without sub-policies (--num_sub_policies 0) is PPO
    from scratch. An RL² policy keeps playing: an episode takes the place of an update, and --updates, --eval_episodes
    and the flags of masters do not apply. Option-critic and actor-critic keep learning: their update is a rollout, and
    --master_lr is the critic's.

    Prints a table, and writes adaptation.csv and adaptation.png, which shows the first 20 tasks. With --wandb or
    --tensorboard, the curves of each run are logged as a run of its own.

    Examples:
        python evaluate.py runs/mb-0
        python evaluate.py runs/mb-0 runs/mb-1 --tasks 0 --updates 50 --eval_episodes 20 --out runs/compared
    """

    KIND: ClassVar[str] = "evaluate"

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, DESCRIBED] = ()
    """Run folders or checkpoints. Each is a line in the figure."""
    out: str = ""
    """Folder for the files. If empty: that of the first run. It must not hold an adaptation.csv."""
    env: str = ""
    """Another environment with the same spaces, played with -T and --high_len of its preset."""
    tasks: tuple[str, ...] = ()
    """Tasks: numbers in a finite family, else JSON. If none are named: all, or --sample of them."""
    held_out: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Learn the held-out tasks instead of the training tasks."""
    sample: Count = 10
    """Number of tasks drawn from a continuous family. Equal tasks are learned once."""
    copies: Count = 64
    """Episodes at a time where environments are stepped one by one (at least -N). Changes RL²'s random numbers."""
    env_workers: CountOrZero = 0
    """Processes that step such environments. 0: the fastest number if the run had 200,000 env steps or more, else 1."""
    device: str = "cpu"
    """Torch device."""
    sim_threads: CountOrZero = 0
    """Simulation threads of the MuJoCo families; 0 for all cores."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "disabled"
    """Log to wandb. auto: as $WANDB_MODE says; without it, online if you are logged in, else offline."""
    tensorboard: bool = False
    """Also write TensorBoard event files, into the folder adaptation in --out."""

    def as_dict(self) -> dict[str, Any]:
        return super().as_dict() | {"runs": [str(run) for run in self.runs]}


class Adaptation(NamedTuple):
    """What was measured for one run."""

    env_steps: np.ndarray  # [updates + 1], per master
    measures: Measures  # name -> [updates + 1, tasks, seeds]
    labels: list[str]  # of the tasks
    best: list[Any]  # best possible return per task; "" where it is not known
    names: list[Any]  # of the tasks on wandb and TensorBoard: their numbers, or their places if they have none
    env: str


def evaluate(run: Path, args: Args) -> Adaptation:
    """Learn the tasks again with what is in a run folder or checkpoint."""
    data = checkpoint.load(run, LEARNERS)
    cfg = dataclasses.replace(data["config"], **args.only("seed", "device", "sim_threads", "copies", "env_workers"))
    cfg = transferred(cfg, args.env)
    cfg.T = args.T or cfg.T
    env = make_env(cfg, 1)
    family = env.test_tasks if args.held_out else env.train_tasks
    known = args.tasks or family
    check_learners(args.sample if known is None else len(known), cfg.hidden if isinstance(cfg, Config) else 0, args)
    tasks = distinct(find_task(env, text, "--tasks") for text in args.tasks) or family
    if tasks is None:
        tasks = drawn_tasks(env, Streams(args.seed, range(args.sample))(0, "evaluate: task"), args.held_out)
    if not tasks:
        raise UserError(f"--held_out: {cfg.env} holds no tasks out; give it test_tasks, or sample_test_task(rng)")
    labels, best = [f"task {task} ({env.task_label(task)})" for task in tasks], env.optimal_returns(cfg.T)
    curves = adaptation_curves(data, cfg, env, tasks, args)
    best = [best[task] if best else "" for task in tasks]
    names = [task if isinstance(task, int) else j for j, task in enumerate(tasks)]
    return Adaptation(*curves, labels, best, names, cfg.env)


def check_learners(tasks: int, hidden: int, args: Args) -> None:
    """Raise a UserError if the masters and their returns do not fit into memory.

    The estimate is a lower bound: one layer of weights for each master, and four numbers for each update. `hidden` is
    the number of units in a layer, or 0 if there are no masters.
    """
    needed = tasks * args.seeds * (4 * hidden**2 + 32 * (args.updates + 1))
    if needed > available_memory():
        raise UserError(
            f"{args.seeds:,} masters for each of {tasks:,} tasks need {needed / 1e9:,.0f} GB of memory or more, but "
            f"only {available_memory() / 1e9:,.0f} GB are available; use smaller --seeds, --sample or --updates"
        )


def print_table(results: dict[str, Adaptation]) -> None:
    """Print one row per run and task, and what the columns mean."""
    last = max(len(x.env_steps) for x in results.values()) - 1
    shown = sorted({last, *(n for n in UPDATES_SHOWN if n < last)})
    rows, reported = [], reported_names(results)
    for name, (env_steps, measures, labels, *_) in results.items():
        for j, label in enumerate(labels):
            returns = measures["return"][:, j]
            mean, (*reached, area) = returns.mean(1), learning_speed(env_steps, returns)
            cells = [f"{mean[n]:.4g}" if n < len(mean) else "" for n in shown]
            cells += [f"{steps:,.0f}" for steps in reached]
            cells.append(f"{area:.4g}" if env_steps[-1] else "")
            cells += [f"{measures[x][-1, j].mean():.4g}" if x in measures else "" for x in reported]
            rows.append([name, label, *cells])
    headers = ["run", "task", *(f"after {n}" for n in shown), "to 90 %", "to 95 %", "area", *reported]
    align = ["left", "left", *["right"] * (len(headers) - 2)]
    print(tabulate(rows, headers, "plain", disable_numparse=True, colalign=align))
    print(f"\n{COLUMNS}")


class LearningSpeed(NamedTuple):
    """The last columns of the table."""

    to_90: float
    to_95: float
    area: float


def learning_speed(env_steps: np.ndarray, returns: np.ndarray) -> LearningSpeed:
    """How fast `returns` [n, seeds] rise over `env_steps` [n]."""
    area = np.trapezoid(returns.mean(1), env_steps) / max(env_steps[-1], 1)
    to_90, to_95 = (steps_to_fraction(part, env_steps, returns) for part in (0.9, 0.95))
    return LearningSpeed(to_90, to_95, area)


def reported_names(results: dict[str, Adaptation]) -> list[str]:
    """The names of what environments report, besides the return."""
    return [x for x in dict.fromkeys(x for run in results.values() for x in run.measures) if x != "return"]


def write(results: dict[str, Adaptation], out: Path) -> None:
    """Write adaptation.csv and adaptation.png to the folder `out`."""
    panels, text = defaultdict(dict), io.StringIO(newline="")
    writer = csv.writer(text)
    reported = reported_names(results)
    writer.writerow(["run", "task", "seed", "update", "env_steps", "return", "best_return", *reported])
    for name, (env_steps, measures, labels, best, *_) in results.items():
        for j, label in enumerate(labels):
            panels[label][name] = env_steps, measures["return"][:, j]
            for n, seed in np.ndindex(len(env_steps), measures["return"].shape[2]):
                cells = [f"{measures[k][n, j, seed]:.6g}" if k in measures else "" for k in ("return", *reported)]
                writer.writerow([name, label, seed, n, f"{env_steps[n]:.0f}", cells[0], best[j], *cells[1:]])
    write_whole(out / "adaptation.csv", text.getvalue())
    draw_bands(out / "adaptation.png", dict([*panels.items()][:DRAWN]), "env steps on the new task")


def track(results: dict[str, Adaptation], runs: list[Path], args: Args, out: Path) -> None:
    """Log the curves of each run, and adaptation.png, as --wandb and --tensorboard say; ten tasks have their own."""
    for (name, result), run in zip(results.items(), runs, strict=True):
        of_run, folder = dataclasses.replace(args, runs=(run,), env=result.env), out / "adaptation" / safe_name(name)
        make_folder(folder)
        trackers, _ = start_trackers(of_run, folder, secrets.token_hex(4))
        for n, env_steps in enumerate(result.env_steps):
            values = {f"new_tasks/{key}": x[n].mean() for key, x in result.measures.items()}
            for j, task in enumerate(result.names[:10]):
                values |= {f"new_tasks/{task}_{key}": x[n, j].mean() for key, x in result.measures.items()}
            for tracker in trackers:
                tracker.log({key: x for key, x in values.items() if not np.isnan(x)}, round(env_steps))
        for j, task in enumerate(result.names[:10]):
            speed = learning_speed(result.env_steps, result.measures["return"][:, j])._asdict()
            for tracker in trackers:
                tracker.log({f"new_tasks/{task}_{key}": x for key, x in speed.items()}, round(env_steps))
        for tracker in trackers:
            tracker.log_image("new_tasks/adaptation", out / "adaptation.png", round(result.env_steps[-1]))
            tracker.close()


def check_login() -> None:
    """Raise a UserError if wandb has no login."""
    import wandb

    if not wandb.login(prompt=False):
        raise UserError("wandb is not online; run `wandb login`, or use --wandb offline")


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Context in which no other evaluation writes to the folder `out`. Raises a UserError if it cannot be written."""
    lock = FileLock(out / ".evaluate.lock")
    with writing(out):
        with tempfile.TemporaryFile(dir=out) as probe:
            probe.write(bytes(100_000))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another evaluation is writing to {out}; wait for it or name another with --out") from None
    try:
        yield
    finally:
        lock.release()


def names_of(runs: list[Path]) -> list[str]:
    """A distinct name for each run: that of its folder or file, or its whole path."""
    names = [run.stem if run.is_file() else run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    if len(set(names)) < len(names):
        raise UserError("a run is named twice; name each once")
    return names


@command
def main() -> None:
    args = cli(Args, description=f"{cleandoc(Args.__doc__ or '')}\n\n{COLUMNS}")
    args.validate()
    if not args.runs:
        raise UserError("name a run folder or a checkpoint")
    for run in args.runs:
        checkpoint.load(run, LEARNERS)  # refuse what is no checkpoint before anything is written
    runs = [run.resolve() if run.exists() else run for run in args.runs]  # a shipped checkpoint is only a name
    runs = [run.parent if run.name == "checkpoint.pt" else run for run in runs]
    names = names_of(runs)
    out = Path(args.out or (runs[0] if runs[0].is_dir() else runs[0].parent)).absolute()  # environments may chdir
    check_tracking(args)
    if args.wandb_mode == "online":
        check_login()  # before an evaluation whose curves could not be uploaded
    make_folder(out)
    refuse_links(out)
    with locked(out):
        if (out / "adaptation.csv").exists():
            raise UserError(f"{out} already holds an adaptation.csv; name another folder with --out, or move the file")
        results = {name: evaluate(run, args) for name, run in zip(names, runs, strict=True)}
        write(results, out)
    print_table(results)
    if args.tensorboard or args.wandb_mode != "disabled":
        track(results, runs, args, out)


if __name__ == "__main__":
    main()
