"""Settings as dataclasses: a flag is a field with its constraint; what all training runs have; the command line."""

import argparse
import contextlib
import dataclasses
import functools
import io
import itertools
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_type_hints

import torch
import tyro

from mlsh.errors import UserError


class Constraint(NamedTuple):
    """What must hold of a setting's value, and the remedy if it does not."""

    holds: Callable[[Any], bool]
    remedy: str


def at_least(least):
    return Constraint(lambda x: x >= least, f"use {least} or more")


Count = Annotated[int, at_least(1)]
Counts = Annotated[tuple[int, ...], Constraint(lambda x: min(x, default=1) >= 1, "use 1 or more")]
CountOrNone = Annotated[int, at_least(0)]
Positive = Annotated[float, Constraint(lambda x: math.isfinite(x) and x > 0, "use a positive number")]
NotNegative = Annotated[float, Constraint(lambda x: math.isfinite(x) and x >= 0, "use 0 or a positive number")]
Fraction = Annotated[float, Constraint(lambda x: 0 <= x <= 1, "use a number from 0 to 1")]
Finite = Annotated[float, Constraint(math.isfinite, "use a finite number")]


def short(*flags):
    """More names of a flag."""
    return tyro.conf.arg(aliases=flags)


@dataclass
class Settings:
    """What the dataclasses of flags share: plain values in and out, and what is refused."""

    def as_dict(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values):
        """The inverse of `as_dict`; TypeError for a value of another type than its default, or an unknown name.

        A flag that is missing, as it came later, has its default.
        """
        settings = cls(**values)
        for field in dataclasses.fields(cls):
            if type(getattr(settings, field.name)) is not type(field.default):
                raise TypeError(f"{field.name} is {getattr(settings, field.name)!r}")
        return settings

    @classmethod
    def notes(cls, name):
        """What stands beside the type in the field's Annotated."""
        return getattr(get_type_hints(cls, include_extras=True)[name], "__metadata__", ())

    @classmethod
    def flag(cls, name):
        """The field's flag as people type it: -N, --tasks."""
        aliases = [alias for note in cls.notes(name) for alias in getattr(note, "aliases", None) or ()]
        return aliases[0] if aliases else f"--{name}"

    def only(self, *names):
        """Some of the fields, as a dict."""
        return {name: getattr(self, name) for name in names}

    def validate(self):
        """Raise a UserError that names the first flag with a value that cannot work."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for note in self.notes(field.name):
                if isinstance(note, Constraint) and not note.holds(value):
                    typed = " ".join(map(str, value)) if isinstance(value, tuple) else value
                    raise UserError(f"{self.flag(field.name)} is {typed}: {note.remedy}")
        try:
            torch.zeros(1, device=self.device).item()
        except Exception:  # each kind of device has its own
            raise UserError(f"--device {self.device} is not available here; use cpu, or cuda with a GPU") from None


@dataclass
class RunSettings(Settings):
    """What every training run has, whatever it trains. A subclass names its `kind` and which field is its `length`."""

    kind: ClassVar[str]  # as checkpoints say it
    length: ClassVar[str]  # the field with the number of outer iterations
    compile = "off"  # until a subclass has it as a field

    env: str = "MovementBandits-v0"
    """Gymnasium id of a task family; `module:Id-v0` imports the module first."""
    seed: CountOrNone = 626
    """Seed of everything random."""
    device: str = "cpu"
    """Torch device of networks and, where it is written in torch, environment."""
    sim_threads: CountOrNone = 0
    """Threads that simulate, in MuJoCo's families; 0 for all cores. Results do not depend on it."""
    copies: Count = 64
    """Copies of an environment that is stepped one by one, in what only tests, but not fewer than -N; with other parts
    tests draw other random numbers."""
    out: str = ""
    """Run folder; a new one in runs/, named by environment and time, if empty."""
    save_seconds: NotNegative = 5.0
    """Seconds between two checkpoints, at least; one is written after an outer iteration only."""
    resume: Annotated[bool, short("-c"), tyro.conf.FlagCreatePairsOff] = False
    """Continue the run in --out from its checkpoint."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Where curves go: auto is what $WANDB_MODE says, or online if you are logged in, else offline."""
    wandb_project: str = ""
    """Project name on wandb; $WANDB_PROJECT or mlsh if empty."""
    wandb_group: str = ""
    """Group name on wandb; $WANDB_RUN_GROUP or the environment's id if empty."""
    wandb_name: str = ""
    """Run name on wandb; $WANDB_NAME or the run folder's name if empty."""
    tensorboard: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write event files for TensorBoard into the run folder, too."""

    @classmethod
    def defaults(cls, env):
        """The settings for an environment where no flag says otherwise."""
        return cls(env=env)

    @classmethod
    def from_dict(cls, values):
        renamed = {"K": "epochs"}  # by now
        return super().from_dict({renamed.get(name, name): value for name, value in values.items()})

    @classmethod
    def changeable(cls):
        """The fields that -c lets change."""
        names = (cls.length, "copies", "record", "wandb", "tensorboard", "device", "sim_threads", "save_seconds")
        return [name for name in names if name in cls.__dataclass_fields__]

    def most_at_once(self, processes):
        """The episodes that each of so many processes plays at once, at most."""
        return self.N

    def settle(self):
        """Decide what is left to be decided when the run begins."""

    @property
    def wandb_mode(self):
        """What --wandb says; where that is auto and no variable of wandb's says otherwise, auto."""
        if self.wandb != "auto":
            return self.wandb
        if os.environ.get("WANDB_DISABLED", "").lower() not in ("", "0", "false", "no", "off"):
            return "disabled"
        mode = os.environ.get("WANDB_MODE") or "auto"
        mode = {"run": "online", "dryrun": "offline"}.get(mode, mode)  # as wandb once called them
        if mode not in ("auto", "online", "offline", "disabled"):
            raise UserError(f"$WANDB_MODE is {mode}: use online, offline or disabled, or unset it")
        return mode

    def validate(self):
        super().validate()
        self.wandb_mode  # noqa: B018 (it raises)


def cli(what, **options):
    """`tyro.cli` of a dataclass, or of a function, which is then to be called; a refusal is a UserError of one line.

    tyro prints a box of several: what was wrong, a rule, and help.
    """
    if not isinstance(what, type):  # tyro would call it, and its own errors and output are none of the command line's
        function = what

        @functools.wraps(function)
        def what(*args, **kwargs):
            return functools.partial(function, *args, **kwargs)

    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(what, use_underscores=True, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
    rows = [line.strip("│ ") for line in box.getvalue().splitlines() if line.startswith("│")]
    wrong = " ".join(itertools.takewhile(lambda row: not row.startswith("─"), rows)).removeprefix("Error parsing ")
    similar = re.search(r"(?:similar to \S+|meant): (--\w+)", " ".join(rows))
    hint = f"did you mean {similar[1]}? " if similar else ""
    raise UserError(f"{wrong.rstrip('.')}; {hint}--help has all flags")


def parse(kind, argv, load):
    """Read the command line `argv` into a valid `kind` of RunSettings, and, with -c, what `load(run folder)` gave.

    With -c the defaults are the checkpoint's; a flag that says otherwise is refused, but for `kind.changeable()`.
    Returns the settings and the checkpoint's dict, or None without -c.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--env", nargs="?", default=kind.env, const=kind.env)  # without a value tyro refuses it
    first.add_argument("--out", nargs="?", default="", const="")
    first.add_argument("-c", "--resume", action="store_true")
    known, _ = first.parse_known_args(argv)
    if not known.resume:
        cfg = cli(kind, args=argv, default=kind.defaults(known.env))
        cfg.validate()
        return cfg, None
    if not known.out:
        raise UserError("-c continues the run in --out; add --out DIR")
    saved = load(known.out)
    default = dataclasses.replace(saved["config"], resume=False)
    cfg = cli(kind, args=argv, default=default)
    changeable = kind.changeable()
    for name, value in default.as_dict().items():
        if name not in (*changeable, "resume", "out") and getattr(cfg, name) != value:
            allowed = ", ".join(f"--{name}" for name in changeable)
            flag = f"{kind.flag(name)} {getattr(cfg, name)}"
            raise UserError(f"{flag} contradicts the run's {value}; with -c only {allowed} may change")
    cfg.validate()
    length = getattr(cfg, kind.length)
    if length < saved["iteration"]:
        raise UserError(f"--{kind.length} is {length}: the run has had {saved['iteration']}; use that or more")
    return cfg, saved
