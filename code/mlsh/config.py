"""The settings of MLSH: one field per flag, with its constraint and the paper's symbol."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from mlsh.compiled import can_compile
from mlsh.defaults import derive, find_facts
from mlsh.envs import find_preset, has_preset
from mlsh.errors import UserError
from mlsh.ppo import PPOSettings
from mlsh.rollout import RolloutSettings
from mlsh.settings import (
    ClippedSettings,
    Constraint,
    Count,
    CountOrZero,
    Default,
    Fraction,
    HardwareSettings,
    NetworkSettings,
    NonNegative,
    Positive,
    RunFolderSettings,
    RunSettings,
    Settings,
    TaskSettings,
    TrackingSettings,
    alias,
    at_least,
)

UNCOMPILED = 25_000  # minibatches before `--compile auto` compiles; about as many must follow to pay for it


@dataclass
class AlgorithmSettings(Settings):
    N: Annotated[Count, alias("-N")] = 40
    """Training episodes per rollout and task group, played side by side (paper: D = N·T env steps)."""
    W: Annotated[CountOrZero, alias("-W")] = 20
    """Warm-up iterations per outer iteration: only the masters learn (paper: W)."""
    U: Annotated[CountOrZero, alias("-U")] = 1
    """Joint iterations per outer iteration: the sub-policies learn too (paper: U)."""
    tasks: Count = 100
    """Outer iterations. In each, every task group draws a task of its own and gets a new master."""
    high_len: Count = 10
    """Env steps between two decisions of the master (paper: N)."""
    num_sub_policies: CountOrZero = 2
    """Number of sub-policies (paper: K). With 0 the master is a flat policy that acts at every env step."""
    groups: Count = 1
    """Task groups, each with its own task and master, that share the sub-policies (paper: 10)."""
    test_episodes: Annotated[int, at_least(2)] = 100
    """Evaluation episodes per task in the final test."""


@dataclass
class HierarchyPPOSettings(ClippedSettings):
    master_lr: Positive = 1e-2
    """Adam's learning rate for the masters θ (paper: 0.01)."""
    sub_lr: Positive = 3e-4
    """Adam's learning rate for the sub-policies φ in the first outer iteration (paper: 0.0003)."""
    sub_lr_decay: Annotated[float, Constraint(lambda x: 0 < x <= 1, "use more than 0, at most 1")] = 1.0
    """Factor on --sub_lr per outer iteration."""
    master_minibatch: Count = 64
    """Decisions per minibatch of a master. If episodes end early, a minibatch has more."""
    sub_minibatches: Count = 15
    """Minibatches per epoch of the sub-policies."""
    master_gamma: Fraction = 0.0
    """Discount factor of the masters, per decision; 0 for that of --gamma."""
    master_entropy: NonNegative = 0.0
    """Entropy coefficient of the masters."""
    sub_entropy: NonNegative = 0.0
    """Entropy coefficient of the sub-policies in the first outer iteration (see --fade)."""
    target_kl: NonNegative = 0.0
    """A sub-policy ends an update early if its KL divergence after an epoch exceeds this; 0 for no limit."""
    dual_clip: Annotated[float, Constraint(lambda x: x == 0 or 1 < x < math.inf, "use 0 or more than 1")] = 0.0
    """Largest ratio from which a bad action is learned (Ye et al. 2020: 3; at least 1 + ε); 0 for no limit."""
    bootstrap: bool = True
    """Bootstrap the master's value at the time limit. Otherwise the limit counts as a termination for the master."""


@dataclass
class HierarchyNetworkSettings(NetworkSettings):
    convolve: bool = True
    """Convolve observations that are images. Otherwise they are flattened."""
    blind: CountOrZero = 0
    """Leading numbers of an observation, such as a position, that the sub-policies' actors do not see."""
    master_sees: CountOrZero = 0
    """Leading numbers of an observation, such as a position, that the masters see; 0 for all of them."""
    sub_spread: NonNegative = 0.0
    """Standard deviation of the sub-policies' initial output biases. With 0 all start as almost the same policy."""


@dataclass
class ExplorationSettings(Settings):
    explore: Fraction = 0.0
    """Probability that a training decision is uniformly random instead of the master's (see --fade)."""
    fade: CountOrZero = 0
    """Outer iterations over which --explore and --sub_entropy decrease linearly to 0; with 0 they stay constant."""


@dataclass
class FilmedRunFolderSettings(RunFolderSettings):
    record: CountOrZero = 10
    """Outer iterations between two sets of videos; 0 for no videos."""


@dataclass
class CompiledHardwareSettings(HardwareSettings):
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the PPO update (about 20 s). auto: after 25,000 minibatches, if there is a compiler. Changes rounding."""


@dataclass
class Config(
    AlgorithmSettings,
    HierarchyPPOSettings,
    HierarchyNetworkSettings,
    ExplorationSettings,
    FilmedRunFolderSettings,
    CompiledHardwareSettings,
    RunSettings,
):
    """Train MLSH (Algorithm 1): for each task a new master learns which of the shared sub-policies to run.

    Examples:
        python train.py -W 60 -U 1 --env MovementBandits-v0
        python train.py --env AntBandits-v1 --seed 1 --out runs/ant-1
    """

    KIND: ClassVar[str] = "mlsh"
    LENGTH: ClassVar[str] = "tasks"
    GROUPS: ClassVar[dict[str, type[Settings]]] = {
        "Task": TaskSettings,
        "Algorithm 1": AlgorithmSettings,
        "PPO": HierarchyPPOSettings,
        "Networks": HierarchyNetworkSettings,
        "Exploration": ExplorationSettings,
        "Run folder": FilmedRunFolderSettings,
        "Tracking": TrackingSettings,
        "Hardware": CompiledHardwareSettings,
    }
    RENAMED: ClassVar[dict[str, str]] = {
        "K": "epochs",
        "num_low": "num_sub_policies",
        "parts_low": "sub_minibatches",
        "hlr": "master_lr",
        "llr": "sub_lr",
        "llr_decay": "sub_lr_decay",
        "bs": "master_minibatch",
        "epsilon": "clip",
        "c1": "value_coef",
        "c2": "master_entropy",
        "c2_low": "sub_entropy",
        "blind_low": "blind",
    }

    @classmethod
    def defaults(cls, env: str) -> Self:
        settings: dict[str, Any] = {"env": env} | find_preset(env)
        return cls(**settings)

    @classmethod
    def derived(cls, env: str, T: int) -> dict[str, Default]:
        if has_preset(env):
            return {}
        settings = cls.defaults(env)
        return derive(find_facts(dataclasses.replace(settings, T=T or settings.T, env_workers=1), settings.gamma))

    def episodes_at_once(self, processes: int) -> int:
        return max(self.N * math.ceil(self.groups / processes), self.test_episodes)

    @property
    def env_steps(self) -> int:
        return self.tasks * (self.W + self.U) * self.groups * self.N * self.T

    @property
    def rollout(self) -> RolloutSettings:
        """How episodes are played and credited, without random decisions. A flat policy decides at every env step."""
        flat = not self.num_sub_policies
        return RolloutSettings(
            high_len=1 if flat else self.high_len,
            bootstrap=self.bootstrap or flat,
            master_gamma=self.gamma if flat else self.master_gamma or self.gamma,
            **self.only("T", "gamma", "lam", "reward_scale"),
        )

    def training_rollout(self, iteration: int) -> RolloutSettings:
        """As `rollout`, with the random decisions of an outer iteration."""
        explore = self.explore * self.faded(iteration) if self.num_sub_policies else 0.0
        return dataclasses.replace(self.rollout, explore=explore)

    @property
    def master_ppo(self) -> PPOSettings:
        decisions = self.N * math.ceil(self.T / self.rollout.high_len)
        return PPOSettings(
            minibatches=math.ceil(decisions / self.master_minibatch),
            entropy_coef=self.master_entropy,
            **self._clipping(),
        )

    def sub_ppo(self, iteration: int) -> PPOSettings:
        """How the sub-policies learn in an outer iteration."""
        return PPOSettings(
            minibatches=self.sub_minibatches,
            entropy_coef=self.sub_entropy * self.faded(iteration),
            target_kl=self.target_kl,
            **self._clipping(),
        )

    def _clipping(self) -> dict[str, Any]:
        return self.only("epochs", "clip", "dual_clip", "value_coef")

    def sub_lr_at(self, iteration: int) -> float:
        """The sub-policies' learning rate in an outer iteration."""
        return self.sub_lr * self.sub_lr_decay**iteration

    def faded(self, iteration: int) -> float:
        """The factor in [0, 1] by which --fade reduces --explore and --sub_entropy in an outer iteration."""
        return max(0.0, 1 - iteration / self.fade) if self.fade else 1.0

    @property
    def minibatches(self) -> int:
        """The number of minibatches that an outer iteration learns from."""
        per_epoch = (self.W + self.U) * self.master_ppo.minibatches
        if self.num_sub_policies:
            per_epoch += self.U * self.sub_minibatches
        return self.epochs * per_epoch

    @property
    def compiled_from(self) -> float:
        """The outer iteration from which on updates are compiled.

        With `auto` it does not depend on the number of outer iterations. So a run that is continued for longer equals
        one that was that long from the start.
        """
        return {"on": 0, "off": math.inf, "auto": math.ceil(UNCOMPILED / self.minibatches)}[self.compile]

    def resolve(self) -> None:
        if self.compile == "auto" and not can_compile(self.device):
            self.compile = "off"

    def check(self) -> None:
        super().check()
        if self.W == self.U == 0:
            raise UserError("-W 0 and -U 0 together learn nothing; make one of them positive")
        if self.U and not self.num_sub_policies:
            raise UserError(
                f"-U is {self.U}: without sub-policies (--num_sub_policies 0) nothing is learned jointly; use -U 0"
            )
