"""Settings as dataclasses: a flag is a field with its constraint; what all training runs have; the command line."""

import argparse
import dataclasses
import math
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
                    raise UserError(f"{self.flag(field.name)} is {value}: {note.remedy}")
        try:
            torch.zeros(1, device=self.device).item()
        except Exception:  # each kind of device has its own
            raise UserError(f"--device {self.device} is not available here; use cpu, or cuda with a GPU") from None


@dataclass
class RunSettings(Settings):
    """What every training run has, whatever it trains. A subclass names its `kind` and which field is its `length`."""

    kind: ClassVar[str]  # as checkpoints say it
    length: ClassVar[str]  # the field with the number of outer iterations

    env: str = "MovementBandits-v0"
    """Gymnasium id of a task family; `module:Id-v0` imports the module first."""
    seed: CountOrNone = 626
    """Seed of everything random."""
    device: str = "cpu"
    """Torch device of networks and, where it is written in torch, environment."""
    sim_threads: CountOrNone = 0
    """Threads that simulate, in MuJoCo's families; 0 for all cores. Results do not depend on it."""
    out: str = ""
    """Run folder; a new one in runs/, named by environment and time, if empty."""
    save_seconds: NotNegative = 5.0
    """Seconds between two checkpoints, at least; one is written after an outer iteration only."""
    resume: Annotated[bool, short("-c"), tyro.conf.FlagCreatePairsOff] = False
    """Continue the run in --out from its checkpoint."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Where curves go: auto is online if you are logged in, else offline."""
    wandb_project: str = "mlsh"
    """Project name on wandb."""
    wandb_group: str = ""
    """Group name on wandb; the environment's id if empty."""
    wandb_name: str = ""
    """Run name on wandb; the run folder's name if empty."""

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
        names = (cls.length, "record", "wandb", "device", "sim_threads", "save_seconds")
        return [name for name in names if name in cls.__dataclass_fields__]


def parse(kind, argv, load):
    """Read the command line `argv` into a valid `kind` of RunSettings, and, with -c, what `load(run folder)` gave.

    With -c the defaults are the checkpoint's; a flag that says otherwise is refused, but for `kind.changeable()`.
    Returns the settings and the checkpoint's dict, or None without -c.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--env", default=kind.env)
    first.add_argument("--out", default="")
    first.add_argument("-c", "--resume", action="store_true")
    known, _ = first.parse_known_args(argv)
    if not known.resume:
        cfg = tyro.cli(kind, args=argv, default=kind.defaults(known.env), use_underscores=True)
        cfg.validate()
        return cfg, None
    if not known.out:
        raise UserError("-c continues the run in --out; add --out DIR")
    saved = load(known.out)
    default = dataclasses.replace(saved["config"], resume=False)
    cfg = tyro.cli(kind, args=argv, default=default, use_underscores=True)
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
