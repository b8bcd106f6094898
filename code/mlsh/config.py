"""Every hyperparameter once: the flags, what they mean, their defaults per environment, and what is refused."""

import argparse
import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import tyro

from mlsh.errors import UserError


def short(letter):
    return tyro.conf.arg(aliases=[f"-{letter}"])


def flag_of(name):
    return f"-{name}" if len(name) == 1 else f"--{name}"


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

    def validate(self):
        """Raise a UserError that names the first flag with a value that cannot work."""
        for names, holds, remedy in RULES:
            for name in names.split():
                value = getattr(self, name, None)
                if value is not None and not holds(value):
                    raise UserError(f"{flag_of(name)} is {value}: {remedy}")
        try:
            torch.zeros(1, device=self.device).item()
        except Exception:  # each kind of device has its own
            raise UserError(f"--device {self.device} is not available here; use cpu, or cuda with a GPU") from None


RULES = (  # names of flags, what must hold, the remedy
    (
        "N tasks K T high_len groups bs parts_low hidden episodes iterations parts seeds sample",
        lambda x: x >= 1,
        "use 1 or more",
    ),
    ("test_episodes", lambda x: x >= 2, "use 2 or more"),
    ("W U num_low record fade seed sim_threads updates look", lambda x: x >= 0, "use 0 or more"),
    ("hlr llr lr epsilon reward_scale", lambda x: math.isfinite(x) and x > 0, "use a positive number"),
    ("gamma lam explore", lambda x: 0 <= x <= 1, "use a number from 0 to 1"),
    ("c1 c2 c2_low target_kl save_seconds", lambda x: math.isfinite(x) and x >= 0, "use 0 or a positive number"),
    ("log_std", math.isfinite, "use a finite number"),
)


@dataclass
class Config(Settings):
    """Train MLSH: for every sampled task a new master policy learns which shared sub-policy to run.

    The defaults shown are the preset of the environment that --env names.
    """

    env: str = "MovementBandits-v0"
    """Gymnasium id of a task family; `module:Id-v0` imports the module first."""
    N: Annotated[int, short("N")] = 40
    """Episodes a rollout and task group (the paper's D is N·T env steps)."""
    W: Annotated[int, short("W")] = 20
    """Warm-up iterations a task: only the master learns (paper: W)."""
    U: Annotated[int, short("U")] = 1
    """Joint iterations a task: the sub-policies learn too (paper: U)."""
    tasks: int = 100
    """Outer iterations; each draws a task and makes a new master for every group."""
    K: Annotated[int, short("K")] = 10
    """PPO epochs an iteration."""
    T: Annotated[int, short("T")] = 50
    """Horizon: env steps after which an episode is truncated."""
    high_len: int = 10
    """Env steps between two decisions of the master (paper: N)."""
    num_low: int = 2
    """Number of sub-policies (paper: K); with 0 the master is a flat policy that acts itself, at every step, on
    observations as they are."""
    groups: int = 1
    """Task groups in step, each with its own task and master; they share the sub-policies (paper: 10)."""
    bs: int = 64
    """Minibatch of a master, in decisions."""
    parts_low: int = 15
    """Minibatches into which an epoch splits the sub-policies' samples."""
    hlr: float = 1e-2
    """Adam's learning rate for the masters θ."""
    llr: float = 3e-4
    """Adam's learning rate for the sub-policies φ."""
    target_kl: float = 0.0
    """KL divergence at which an update of the sub-policies makes no further epoch; 0 for none."""
    gamma: float = 0.99
    """Discount γ, of a step for the sub-policies and of a decision for the master."""
    lam: float = 0.95
    """λ of generalised advantage estimation, at both timescales."""
    bootstrap: bool = True
    """Bootstrap the master's value at the time limit; without, the episode ends there for it."""
    epsilon: float = 0.2
    """ε of PPO's clipped ratio."""
    c1: float = 0.5
    """Weight of the value loss."""
    c2: float = 0.0
    """Weight of the master's entropy bonus."""
    c2_low: float = 0.0
    """Weight of the sub-policies' entropy bonus, at first (see --fade)."""
    explore: float = 0.0
    """Probability that training replaces a master's decision by a uniformly random one, at first (see --fade)."""
    fade: int = 0
    """Outer iterations over which --explore and --c2_low go linearly to 0; with 0 they stay."""
    hidden: int = 64
    """Units in each of the two hidden layers of every network."""
    log_std: float = 0.0
    """Initial log standard deviation of continuous actions."""
    normalise: bool = True
    """Normalise observations by their running mean and variance, clipped to ±5."""
    reward_scale: float = 1.0
    """Factor on rewards inside the learner; reported returns are without it."""
    record: int = 10
    """Outer iterations between two sets of videos; 0 for none."""
    test_episodes: int = 100
    """Episodes of each task in the final test."""
    seed: int = 626
    """Seed of everything random."""
    device: str = "cpu"
    """Torch device of networks and, where it is written in torch, environment."""
    sim_threads: int = 0
    """Threads that simulate, in MuJoCo's families; 0 for all cores. Results do not depend on it."""
    out: str = ""
    """Run folder; runs/<env>-<time> if empty."""
    save_seconds: float = 5.0
    """Seconds between two checkpoints, at least; one is written after an outer iteration only."""
    resume: Annotated[bool, short("c"), tyro.conf.FlagCreatePairsOff] = False
    """Continue the run in --out from its checkpoint."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Where curves go: auto is online if you are logged in, else offline."""
    wandb_project: str = "mlsh"
    """Project name on wandb."""
    wandb_group: str = ""
    """Group name on wandb; the environment's id if empty."""
    wandb_name: str = ""
    """Run name on wandb; the run folder's name if empty."""

    @property
    def rollout(self):
        """Keyword arguments of `collect`."""
        bootstrap = self.bootstrap or not self.num_low  # without sub-policies the master has a decision a step
        return {k: getattr(self, k) for k in ("T", "high_len", "gamma", "lam", "reward_scale")} | {
            "bootstrap": bootstrap
        }

    @property
    def master_ppo(self):
        """Keyword arguments of `update` for the masters."""
        decisions = self.N * -(-self.T // (self.high_len if self.num_low else 1))
        return {"parts": -(-decisions // self.bs), "c2": self.c2, **self._ppo}

    def low_ppo(self, iteration):
        """Keyword arguments of `update` for the sub-policies at an outer iteration."""
        c2 = self.c2_low * self.faded(iteration)
        return {"parts": self.parts_low, "c2": c2, "target_kl": self.target_kl, **self._ppo}

    @property
    def _ppo(self):
        return {"epochs": self.K, "epsilon": self.epsilon, "c1": self.c1}

    def faded(self, iteration):
        """What remains of --explore and --c2_low at an outer iteration: a factor in [0, 1]."""
        return max(0.0, 1 - iteration / self.fade) if self.fade else 1.0

    def validate(self):
        super().validate()
        if self.W == self.U == 0:
            raise UserError("-W 0 and -U 0 together learn nothing; make one of them positive")
        if self.U and not self.num_low:
            raise UserError(f"-U is {self.U}: without sub-policies (--num_low 0) there is no joint learning; use -U 0")


@dataclass
class RL2Config(Settings):
    """Train RL², a recurrent policy over several episodes of a task (mlsh/rl2.py); the paper's baseline.

    The defaults are for MovementBandits; other environments want their own -T and --reward_scale.
    """

    env: str = "MovementBandits-v0"
    """Gymnasium id of a task family; `module:Id-v0` imports the module first."""
    N: Annotated[int, short("N")] = 100
    """Trials a rollout; each draws a task."""
    episodes: int = 4
    """Episodes in a trial."""
    iterations: int = 250
    """Rollouts, with an update after each."""
    T: Annotated[int, short("T")] = 50
    """Horizon: env steps after which an episode is truncated."""
    K: Annotated[int, short("K")] = 5
    """PPO epochs an iteration."""
    parts: int = 4
    """Minibatches into which an epoch splits the trials."""
    lr: float = 1e-2
    """Adam's learning rate."""
    gamma: float = 0.99
    """Discount γ of a step."""
    lam: float = 0.95
    """λ of generalised advantage estimation, over the whole trial."""
    epsilon: float = 0.2
    """ε of PPO's clipped ratio."""
    c1: float = 0.5
    """Weight of the value loss."""
    c2: float = 0.01
    """Weight of the entropy bonus."""
    hidden: int = 64
    """Units of the GRU."""
    log_std: float = 0.0
    """Initial log standard deviation of continuous actions."""
    reward_scale: float = 0.1
    """Factor on rewards inside the learner; reported returns are without it."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "cpu"
    """Torch device."""
    sim_threads: int = 0
    """Threads that simulate, in MuJoCo's families; 0 for all cores."""
    out: str = ""
    """Run folder; runs/rl2-<env>-<time> if empty."""

    def validate(self):
        super().validate()
        if self.parts > self.N:
            raise UserError(f"--parts is {self.parts}: there are only {self.N} trials to split; use --parts {self.N}")

    @property
    def trial(self):
        """Keyword arguments of `rl2.play`."""
        return {k: getattr(self, k) for k in ("episodes", "T", "gamma", "lam", "reward_scale")}

    @property
    def ppo(self):
        """Keyword arguments of `rl2.learn`."""
        return {"epochs": self.K, **{k: getattr(self, k) for k in ("parts", "epsilon", "c1", "c2")}}


@dataclass
class EvaluationConfig(Settings):
    """Learn each task anew with what a run has learned (mlsh/evaluation.py)."""

    env: str = ""
    """Another environment than the run's own, with the same spaces (transfer)."""
    tasks: tuple[str, ...] = ()
    """Tasks: numbers in a finite family, else JSON. Default: all, or a sample of --sample."""
    sample: int = 10
    """Tasks drawn from a continuous family."""
    updates: int = 20
    """PPO updates of each master."""
    seeds: int = 10
    """Masters a task, each with its own randomness."""
    seed: int = 0
    """Seed of everything random."""
    look: int = 0
    """Episodes that measure each master after every update and count as no env steps; 0: those it learns from."""
    N: Annotated[int, short("N")] = 0
    """Episodes a rollout; 0 for the run's (of RL²: trials a seed, 10)."""
    hlr: float = 0.0
    """Learning rate; 0 for the run's."""
    bs: int = 0
    """Minibatch of a master, in decisions; 0 for the run's."""
    device: str = "cpu"
    """Torch device."""
    sim_threads: int = 0
    """Threads that simulate, in MuJoCo's families; 0 for all cores."""

    def validate(self):
        rest = {name: getattr(self, name) or 1 for name in ("N", "bs")}  # 0 is the run's
        Settings.validate(dataclasses.replace(self, **rest, hlr=self.hlr or 1.0, tasks=None))


PRESETS = {
    "MovementBandits-v0": {
        "N": 40,
        "W": 60,
        "U": 1,
        "tasks": 32,
        "T": 50,
        "high_len": 10,
        "groups": 8,
        "bs": 200,
        "parts_low": 30,
        "llr": 1.5e-3,
        "explore": 0.1,
        "c2_low": 0.02,
        "fade": 20,
        "normalise": False,
        "reward_scale": 0.1,
        "test_episodes": 1000,
    },
}
PRESETS["AntBandits-v1"] = {
    "N": 8,
    "W": 5,
    "U": 20,
    "tasks": 50,
    "T": 300,
    "high_len": 300,
    "groups": 4,
    "parts_low": 16,
    "hlr": 2e-3,
    "target_kl": 0.03,
    "bootstrap": False,
    "explore": 0.1,
    "fade": 30,
    "log_std": -0.5,
    "reward_scale": 300.0,
}
PRESETS["MovementBandits4-v0"] = PRESETS["MovementBandits-v0"] | {
    "W": 20,
    "U": 5,
    "tasks": 80,
    "num_low": 4,
    "c2_low": 0.05,
    "fade": 70,
}

CHANGEABLE = ("tasks", "record", "wandb", "device", "sim_threads", "save_seconds", "resume", "out")  # by -c


def parse(argv, load):
    """Read the command line `argv`. Returns a valid Config and, with -c, what `load(run folder)` gave, else None.

    With -c the defaults are the checkpoint's; a flag that says otherwise is refused, but for `CHANGEABLE`.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--env", default=Config.env)
    first.add_argument("--out", default="")
    first.add_argument("-c", "--resume", action="store_true")
    known, _ = first.parse_known_args(argv)
    saved = None
    if known.resume:
        if not known.out:
            raise UserError("-c continues the run in --out; add --out DIR")
        saved = load(known.out)
        default = dataclasses.replace(saved["config"], resume=False)
    else:
        default = Config(**({"env": known.env} | PRESETS.get(known.env.split(":")[-1], {})))
    cfg = tyro.cli(Config, args=argv, default=default, use_underscores=True)
    for name, value in default.as_dict().items() if saved else ():
        if name not in CHANGEABLE and getattr(cfg, name) != value:
            allowed = ", ".join(f"--{n}" for n in CHANGEABLE[:6])
            flag = f"{flag_of(name)} {getattr(cfg, name)}"
            raise UserError(f"{flag} contradicts the run's {value}; with -c only {allowed} may change")
    cfg.validate()
    if saved and cfg.tasks < saved["iteration"]:
        raise UserError(f"--tasks is {cfg.tasks}: the run has had {saved['iteration']}; use that or more")
    return cfg, saved
