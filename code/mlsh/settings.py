"""Settings as dataclasses: each field is a flag with a constraint, and groups of flags are shared between commands."""

import argparse
import contextlib
import dataclasses
import functools
import io
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Protocol,
    Self,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import torch
import tyro
from tabulate import tabulate

from mlsh.errors import NoCheckpoint, UserError
from mlsh.process import is_command

WORTH_WORKERS = 200_000  # env steps of a run that is worth the seconds in which workers start


class Constraint(NamedTuple):
    """What must hold for the value of a setting, and the remedy if it does not."""

    holds: Callable[[Any], bool]
    remedy: str


def at_least(least: int) -> Constraint:
    return Constraint(lambda x: x >= least, f"use {least} or more")


Count = Annotated[int, at_least(1)]
Counts = Annotated[tuple[int, ...], Constraint(lambda x: min(x, default=1) >= 1, "use 1 or more")]
CountOrZero = Annotated[int, at_least(0)]
Positive = Annotated[float, Constraint(lambda x: math.isfinite(x) and x > 0, "use a positive number")]
NonNegative = Annotated[float, Constraint(lambda x: math.isfinite(x) and x >= 0, "use 0 or a positive number")]
Fraction = Annotated[float, Constraint(lambda x: 0 <= x <= 1, "use a number from 0 to 1")]
Finite = Annotated[float, Constraint(math.isfinite, "use a finite number")]


def alias(*flags: str) -> Any:
    """Other names of a flag."""
    return tyro.conf.arg(aliases=flags)


DESCRIBED: Any = tyro.conf.arg(help_behavior_hint="")  # the field's docstring says what the default is


class Settings:
    """Base class for dataclasses of flags: conversion from and to plain values, and validation."""

    RENAMED: ClassVar[dict[str, str]] = {}  # name in earlier versions, or in the earlier port -> name today
    REMOVED: ClassVar[tuple[str, ...]] = ()  # names of earlier versions that no longer exist

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]  # every subclass is a dataclass

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `as_dict`. It also accepts the names of earlier versions.

        A setting that is missing, because it was added later, gets its default. Raises a UserError for an unknown name,
        for a value of another type than the default, and for what `check` refuses.
        """
        if not isinstance(values, dict):
            raise UserError(f"the settings are {values!r:.60} instead of names and values")
        renamed = {cls.RENAMED.get(name, name): x for name, x in values.items() if name not in cls.REMOVED}
        defaults = {field.name: field.default for field in fields_of(cls)}
        for name, x in renamed.items():
            if name not in defaults:
                raise UserError(f"there is no setting {name!r:.60}")
            if type(x) is not type(defaults[name]):
                raise UserError(f"{name} is {x!r:.60} instead of a value like {defaults[name]!r}")
        settings = cls(**renamed)
        settings.check()
        return settings

    @classmethod
    def annotations_of(cls, name: str) -> tuple[Any, ...]:
        """The metadata of a field's `Annotated` type: its constraint and aliases."""
        return getattr(get_type_hints(cls, include_extras=True)[name], "__metadata__", ())

    @classmethod
    def flag(cls, name: str) -> str:
        """The flag of a field as people type it: its one-letter alias, or its name."""
        aliases = [x for note in cls.annotations_of(name) for x in getattr(note, "aliases", None) or ()]
        return next((x for x in aliases if re.fullmatch("-[A-Za-z]", x)), f"--{name}")

    def only(self, *names: str) -> dict[str, Any]:
        """Some of the fields, as a dict."""
        return {name: getattr(self, name) for name in names}

    def check(self) -> None:
        """Raise a UserError that names the first flag whose value cannot work on any machine."""
        hints = get_type_hints(type(self))
        for field in fields_of(type(self)):
            value, hint = getattr(self, field.name), hints[field.name]
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise UserError(f"{self.flag(field.name)} is {value!r:.60}: use {', '.join(get_args(hint))}")
            if isinstance(value, int) and value >= 2**63:
                raise UserError(f"{self.flag(field.name)} is 2^63 or more: use a smaller number")
            for note in self.annotations_of(field.name):
                if isinstance(note, Constraint) and not note.holds(value):
                    typed = " ".join(map(str, value)) if isinstance(value, tuple) else f"{value!r:.60}"
                    raise UserError(f"{self.flag(field.name)} is {typed}: {note.remedy}")

    def validate(self) -> None:
        """As `check`, and raise a UserError for what cannot work on this machine."""
        self.check()
        device = getattr(self, "device", "cpu")
        try:
            torch.zeros(1, device=device).item()
        except Exception:  # each kind of device raises its own
            raise UserError(f"--device {device} is not available here; use cpu, or cuda with a GPU") from None


class Default(NamedTuple):
    """A default that follows from the environment."""

    value: Any
    reason: str


S = TypeVar("S", bound=Settings)


def fields_of(settings: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(settings)


# Groups of flags that several commands share. `Config` and the baselines' settings inherit from them.


@dataclass
class TaskSettings(Settings):
    env: Annotated[str, Constraint(str.isprintable, "use printable characters")] = "MovementBandits-v0"
    """Gymnasium id of a task family. For `module:Id-v0` the module is imported first."""
    T: Annotated[Count, alias("-T")] = 50
    """Horizon: an episode is truncated after this many env steps. Without a preset: the environment's own limit."""
    seed: CountOrZero = 626
    """Seed of all randomness. The same seed, machine and number of threads give the same run, bit by bit."""


@dataclass
class RewardSettings(Settings):
    gamma: Fraction = 0.99
    """Discount factor γ per env step (masters: per decision)."""
    lam: Fraction = 0.95
    """λ of generalised advantage estimation."""
    reward_scale: Positive = 1.0
    """Factor on rewards inside the learner. Reported returns are not scaled."""


@dataclass
class ClippedSettings(RewardSettings):
    epochs: Annotated[Count, alias("-K")] = 10
    """PPO epochs per iteration."""
    clip: Positive = 0.2
    """Clip range ε of PPO's probability ratio."""
    value_coef: NonNegative = 0.5
    """Coefficient of the value loss."""


@dataclass
class NetworkSettings(Settings):
    hidden: Count = 64
    """Units per hidden layer, or of the GRU (paper: 64)."""
    log_std: Finite = 0.0
    """Initial log standard deviation of continuous actions."""
    normalise: bool = True
    """Normalise observations by their running mean and variance, clipped to ±5. Integer images are not normalised."""


@dataclass
class RunFolderSettings(Settings):
    out: str = ""
    """Run folder. If empty: a new folder in runs/, named after environment and time."""
    resume: Annotated[bool, alias("-c"), tyro.conf.FlagCreatePairsOff] = False
    """Continue the run in --out from its checkpoint, or start it if there is nothing yet."""
    save_seconds: NonNegative = 5.0
    """Minimum number of seconds between two checkpoints. They are written after outer iterations."""


@dataclass
class TrackingSettings(Settings):
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Log to wandb. auto: as $WANDB_MODE says; without it, online if you are logged in, else offline."""
    wandb_project: str = ""
    """Project name on wandb. If empty: $WANDB_PROJECT, or mlsh."""
    tensorboard: bool = False
    """Also write TensorBoard event files into the run folder."""

    @property
    def wandb_mode(self) -> str:
        """auto, online, offline or disabled, from --wandb and the environment variables of wandb."""
        if self.wandb != "auto":
            return self.wandb
        if os.environ.get("WANDB_DISABLED", "").lower() not in ("", "0", "false", "no", "off"):
            return "disabled"
        mode = os.environ.get("WANDB_MODE") or "auto"
        mode = {"run": "online", "dryrun": "offline"}.get(mode, mode)  # wandb's former names
        if mode not in ("auto", "online", "offline", "disabled"):
            raise UserError(f"$WANDB_MODE is {mode}: use online, offline or disabled, or unset it")
        return mode

    def validate(self) -> None:
        super().validate()
        self.wandb_mode  # noqa: B018  # raises for an unknown $WANDB_MODE


class TrackedSettings(Protocol):
    """The settings that trackers need; those of training runs and of evaluate.py have them."""

    KIND: ClassVar[str]
    env: str
    wandb_project: str
    tensorboard: bool

    @property
    def wandb_mode(self) -> str: ...
    def as_dict(self) -> dict[str, Any]: ...


@dataclass
class HardwareSettings(Settings):
    device: str = "cpu"
    """Torch device of the networks, and of environments that are written in torch."""
    sim_threads: CountOrZero = 0
    """Simulation threads of the MuJoCo families; 0 for all cores. Results do not depend on it."""
    copies: Count = 64
    """Copies of an environment that is not written as a batch, in tests (at least -N)."""
    env_workers: CountOrZero = 0
    """Processes that step these copies. 0: the fastest number in runs of 200,000 env steps or more, else 1."""


@dataclass
class MasterSettings(Settings):
    """How new masters learn over the sub-policies of a finished run."""

    N: Annotated[CountOrZero, alias("-N")] = 0
    """Episodes per rollout and master; 0 for that of the run."""
    T: Annotated[CountOrZero, alias("-T")] = 0
    """Env steps per episode; 0 for that of the run, or of --env."""
    high_len: CountOrZero = 0
    """Env steps between two decisions of a master; 0 for that of the run, or of --env."""
    master_sees: CountOrZero = 0
    """Leading numbers of an observation that the masters see; 0 for as many as in the run."""
    master_gamma: Fraction = 0.0
    """Discount factor of the masters, per decision; 0 for that of the run."""
    master_lr: NonNegative = 0.0
    """Learning rate of the masters; 0 for that of the run."""

    def given(self, *names: str) -> dict[str, Any]:
        """The named fields that are not 0; 0 means the run's own value."""
        return {name: x for name, x in self.only(*names).items() if x}


@dataclass
class AdaptationSettings(MasterSettings):
    """How evaluate.py learns tasks with the networks of finished runs."""

    RENAMED: ClassVar[dict[str, str]] = {
        "look": "eval_episodes",
        "hlr": "master_lr",
        "bs": "master_minibatch",
        "llr": "sub_lr",
    }

    N: Annotated[CountOrZero, alias("-N")] = 0
    """Episodes per rollout and master; 0 for that of the run (RL²: for 10 trials per seed)."""
    master_lr: NonNegative = 0.0
    """Learning rate of the masters (option-critic: of the critic); 0 for that of the run."""
    updates: CountOrZero = 20
    """PPO updates per master."""
    seeds: Count = 10
    """Masters per task, each with random numbers of its own."""
    seed: CountOrZero = 0
    """Seed of all randomness."""
    eval_episodes: CountOrZero = 0
    """Evaluation episodes per master and update, not counted as env steps; 0 reports training episodes instead."""
    master_minibatch: CountOrZero = 0
    """Decisions per minibatch of a master, and with --sub_kl env steps per minibatch of its sub-policies; 0 for that of
    the run."""
    sub_kl: Annotated[float, Constraint(lambda x: 0 <= x <= 1e6 or x == math.inf, "use 0 to 1e6, or inf")] = math.inf
    """With a number, copies of an MLSH run's sub-policies learn with each master. The number is the coefficient, in
    their loss, of the KL divergence from the run's sub-policies; inf keeps these frozen."""
    sub_lr: NonNegative = 0.0
    """Learning rate of these copies, or of a shared policy that is fine-tuned; 0 for that of the run."""


COMMON_GROUPS: dict[str, type[Settings]] = {
    "Networks": NetworkSettings,
    "Run folder": RunFolderSettings,
    "Tracking": TrackingSettings,
    "Hardware": HardwareSettings,
}


@dataclass
class RunSettings(TaskSettings, NetworkSettings, RunFolderSettings, TrackingSettings, HardwareSettings):
    """Settings of every training run. A subclass names its `KIND`, its `LENGTH` and its `GROUPS`."""

    KIND: ClassVar[str]  # as written into checkpoints
    LENGTH: ClassVar[str]  # the field with the number of outer iterations
    GROUPS: ClassVar[dict[str, type[Settings]]]  # title of a group of flags in --help -> its fields
    REMOVED: ClassVar[tuple[str, ...]] = ("wandb_group", "wandb_name")  # $WANDB_RUN_GROUP and $WANDB_NAME do the same
    compile: ClassVar[str] = "off"  # `Config` makes it a field
    notes: str = dataclasses.field(default="", init=False, compare=False)  # to be printed when the run begins

    @property
    def compiled_from(self) -> float:
        """The outer iteration from which on updates are compiled."""
        return math.inf

    def as_dict(self) -> dict[str, Any]:
        """All settings by name, in the order of the groups."""
        return self.only(*(field.name for group in self.GROUPS.values() for field in fields_of(group)))

    @classmethod
    def defaults(cls, env: str) -> Self:
        """The settings for an environment before any flag is read: those of its preset."""
        return cls(env=env)

    @classmethod
    def derived(cls, env: str, T: int) -> dict[str, Default]:
        """Defaults for an environment without a preset. `T`: the horizon, or 0 for the environment's own limit."""
        return {}

    @classmethod
    def changeable(cls) -> list[str]:
        """The fields that may differ when a run is continued."""
        hardware = ("copies", "env_workers", "device", "sim_threads")
        names = (cls.LENGTH, *hardware, "record", "wandb", "wandb_project", "tensorboard", "save_seconds")
        known = {field.name for field in fields_of(cls)}
        return [name for name in names if name in known]

    def episodes_at_once(self, processes: int) -> int:
        """The largest number of episodes that one of so many processes plays at a time."""
        raise NotImplementedError

    @property
    def env_steps(self) -> int:
        """The env steps of training if no episode ends early."""
        raise NotImplementedError

    @property
    def env_processes(self) -> int | None:
        """Processes that step the copies of an environment that is not written as a batch, this one included.

        None: as many as are fastest. A program that imports this package may not be prepared for workers.
        """
        long = is_command() and self.env_steps >= WORTH_WORKERS
        return self.env_workers or (None if long else 1)

    def resolve(self) -> None:
        """Settle what depends on the machine when a run begins. With -c it stays as it was."""


def cli(what: Any, args: Sequence[str] | None = None, **options: Any) -> Any:
    """`tyro.cli` for a dataclass, or for a function, which is then to be called. `args` defaults to `sys.argv[1:]`.

    Raises a one-line UserError for a command line that cannot be read; tyro itself prints a box of several lines.
    """
    args = current_names(sys.argv[1:] if args is None else args, getattr(what, "RENAMED", {}))
    args = without_truth_values(with_home(args), what)
    if isinstance(what, type):
        options.setdefault("description", cleandoc(what.__doc__ or ""))  # tyro leaves the examples out
    else:  # tyro would call it, and so mix its own errors and output with the function's
        function = what

        @functools.wraps(function)
        def deferred(*args: Any, **kwargs: Any) -> Callable[[], Any]:
            return functools.partial(function, *args, **kwargs)

        what = deferred

    program = Path(sys.argv[0]).name
    if program.startswith("mlsh-"):  # the examples call the script of the same name
        script = f"python {program.removeprefix('mlsh-')}.py"
        options["description"] = options["description"].replace(script, program)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(what, prog=program, args=args, use_underscores=True, **options)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
    lines = [line.strip("│ ") for line in box.getvalue().splitlines() if line.startswith("│")]
    reason = " ".join(itertools.takewhile(lambda line: not line.startswith("─"), lines)).removeprefix("Error parsing ")
    similar = re.search(r"(?:similar to \S+|meant): (--\w+)", " ".join(lines))
    hint = f"did you mean {similar[1]}? " if similar else ""
    raise UserError(f"{reason.rstrip('.')}; {hint}--help lists all flags")


def current_names(argv: Sequence[str], renamed: dict[str, str]) -> list[str]:
    """The command line with flags of earlier versions, and of the earlier port, replaced by those of today."""

    def current(word: str) -> str:
        flag, equals, value = word.partition("=")
        name = renamed.get(flag.removeprefix("--").replace("-", "_"))
        return f"--{name}{equals}{value}" if name and flag.startswith("--") else word

    return [current(word) for word in argv]


def with_home(argv: Sequence[str]) -> list[str]:
    """The command line with the home folder for ~, which shells leave in --out=~/runs, and scripts everywhere."""

    def expanded(word: str) -> str:
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        return f"{flag}{equals}{os.path.expanduser(value)}"  # noqa: PTH111 (Path.expanduser raises without a home)

    return [expanded(word) for word in argv]


def without_truth_values(argv: Sequence[str], what: Any) -> list[str]:
    """The command line for `what`, with --flag and --no_flag for --flag=True and --flag=False, which wandb sends."""
    paired = bool_flags(what)

    def plain(word: str) -> list[str]:
        flag, _, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name not in paired or value.lower() not in ("true", "false"):
            return [word]
        if value.lower() == "true":
            return [f"--{name}"]
        return [f"--no_{name}"] if paired[name] else []

    return [new for word in argv for new in plain(word)]


def bool_flags(what: Any) -> dict[str, bool]:
    """Return the bool flags of a dataclass, its groups, or a function, and whether --no_… turns each off."""
    found = {}
    for name, hint in get_type_hints(what, include_extras=True).items():
        kind = getattr(hint, "__origin__", hint)
        if kind is bool:
            found[name] = tyro.conf.FlagCreatePairsOff not in getattr(hint, "__metadata__", ())
        elif dataclasses.is_dataclass(kind):
            found |= bool_flags(kind)
    return found


def parse_grouped(kind: type[RunSettings], argv: Sequence[str], default: RunSettings, description: str) -> Any:
    """Read flags into a `kind`; --help shows one box per group, in the order of `kind.GROUPS`."""
    groups = []
    for i, (title, group) in enumerate(kind.GROUPS.items()):
        values = {field.name: getattr(default, field.name) for field in fields_of(group)}
        titled = Annotated[group, tyro.conf.arg(name=title)]
        groups.append((f"group{i}", titled, dataclasses.field(default_factory=functools.partial(group, **values))))
    flags = dataclasses.make_dataclass("Flags", groups)
    args = current_names(argv, kind.RENAMED)
    parsed = cli(flags, args, description=description, config=(tyro.conf.OmitArgPrefixes,))
    return kind(**{name: x for group in vars(parsed).values() for name, x in vars(group).items()})


def parse(
    kind: type[RunSettings], argv: Sequence[str], load: Callable[[str], dict[str, Any]]
) -> tuple[Any, dict[str, Any] | None]:
    """Read the command line `argv` into valid settings of a `kind`.

    With -c the defaults are those of the checkpoint that `load(run folder)` returns, unless it raises NoCheckpoint. A
    flag that contradicts the checkpoint is a UserError, except for the flags in `kind.changeable()`. Returns the
    settings, and the checkpoint's dict or None.
    """
    argv = without_truth_values(with_home(argv), kind)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--env", nargs="?", default=kind.env, const=kind.env)  # tyro refuses a flag without its value
    first.add_argument("--out", nargs="?", default="", const="")
    first.add_argument("-T", nargs="?", default="", const="")
    first.add_argument("-c", "--resume", action="store_true")
    known, _ = first.parse_known_args(argv)
    if known.resume and not known.out:
        raise UserError("-c continues the run in --out; add --out FOLDER")
    saved = None
    if known.resume:
        with contextlib.suppress(NoCheckpoint):
            saved = load(f"{known.out}/checkpoint.pt")  # --out never names a shipped checkpoint
    default = dataclasses.replace(saved["config"], resume=False) if saved else kind.defaults(known.env)
    derived = {} if saved else kind.derived(known.env, int(known.T) if known.T.isdecimal() else 0)
    default = dataclasses.replace(default, **{name: x.value for name, x in derived.items()})
    cfg = parse_grouped(kind, argv, default, describe(kind, default))
    if not saved:
        cfg.validate()
        cfg.notes = explain(derived, cfg) if derived else ""
        return cfg, None
    for name, value in default.as_dict().items():
        if getattr(cfg, name) == "auto" and name not in kind.changeable():
            setattr(cfg, name, value)  # what the run has found
        if name not in (*kind.changeable(), "resume", "out") and getattr(cfg, name) != value:
            allowed = ", ".join(f"--{name}" for name in kind.changeable())
            flag = f"{kind.flag(name)} {getattr(cfg, name)}"
            raise UserError(f"{flag} contradicts the run's {value}; with -c only {allowed} may change")
    cfg.validate()
    length = getattr(cfg, kind.LENGTH)
    if length < saved["iteration"]:
        raise UserError(f"--{kind.LENGTH} is {length}: the run has done {saved['iteration']}; use that or more")
    return cfg, saved


def explain(derived: dict[str, Default], cfg: RunSettings) -> str:
    """A table of the derived defaults that no flag has overridden, with their reasons."""
    rows = [(cfg.flag(name), x.value, x.reason) for name, x in derived.items() if getattr(cfg, name) == x.value]
    return f"{cfg.env} has no preset; these defaults follow from it:\n" + tabulate(rows, tablefmt="plain")


def describe(kind: type[RunSettings], default: RunSettings) -> str:
    """The text above the flags in --help, with the names of those whose default comes from the environment."""
    general = kind()
    changed = [
        kind.flag(field.name)
        for group in kind.GROUPS.values()
        for field in fields_of(group)
        if field.name != "env" and getattr(default, field.name) != getattr(general, field.name)
    ]
    preset = f"Defaults that come from {default.env}: {', '.join(changed)}."
    return f"{cleandoc(kind.__doc__ or '')}\n\n{preset}" if changed else cleandoc(kind.__doc__ or "")
