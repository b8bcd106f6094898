"""The settings of MLSH, each with its constraint and the paper's symbol."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from mlsh.compiled import possible
from mlsh.envs import find_preset
from mlsh.errors import UserError
from mlsh.settings import (
    Constraint,
    Count,
    CountOrNone,
    Finite,
    Fraction,
    NotNegative,
    Positive,
    RunSettings,
    at_least,
    short,
)

MANY = 10_000  # minibatches, to learn from which takes as long as to compile


@dataclass
class Config(RunSettings):
    """Train MLSH: for every sampled task a new master policy learns which shared sub-policy to run.

    The defaults shown are the preset of the environment that --env names.
    """

    kind: ClassVar[str] = "mlsh"
    length: ClassVar[str] = "tasks"

    N: Annotated[Count, short("-N")] = 40
    """Episodes side by side in a rollout of a task group (the paper's D is N·T env steps)."""
    W: Annotated[CountOrNone, short("-W")] = 20
    """Warm-up iterations a task: only the master learns (paper: W)."""
    U: Annotated[CountOrNone, short("-U")] = 1
    """Joint iterations a task: the sub-policies learn too (paper: U)."""
    tasks: Count = 100
    """Outer iterations; each draws a task and makes a new master for every group."""
    epochs: Annotated[Count, short("-K", "--K")] = 10
    """PPO epochs an iteration."""
    T: Annotated[Count, short("-T")] = 50
    """Horizon: env steps after which an episode is truncated; by default the environment's own limit."""
    high_len: Count = 10
    """Env steps between two decisions of the master (paper: N)."""
    num_sub_policies: CountOrNone = 2
    """Number of sub-policies (paper: K); with 0 the master is a flat policy that acts itself, at every step."""
    groups: Count = 1
    """Task groups in step, each with its own task and master; they share the sub-policies (paper: 10)."""
    master_minibatch: Count = 64
    """Minibatch of a master, in decisions; of more of them where episodes end early."""
    sub_minibatches: Count = 15
    """Minibatches into which an epoch splits the sub-policies' samples."""
    master_lr: Positive = 1e-2
    """Adam's learning rate for the masters θ."""
    sub_lr: Positive = 3e-4
    """Adam's learning rate for the sub-policies φ, at first."""
    sub_lr_decay: Annotated[float, Constraint(lambda x: 0 < x <= 1, "use more than 0, at most 1")] = 1.0
    """Factor by which --sub_lr falls with every outer iteration, however many there are."""
    target_kl: NotNegative = 0.0
    """KL divergence above which a sub-policy's update makes no further epoch; 0 for none."""
    gamma: Fraction = 0.99
    """Discount γ, of a step for the sub-policies and of a decision for the master."""
    lam: Fraction = 0.95
    """λ of generalised advantage estimation, at both timescales."""
    bootstrap: bool = True
    """Bootstrap the master's value at the time limit; without, the episode ends there for it."""
    epsilon: Positive = 0.2
    """ε of PPO's clipped ratio."""
    dual_clip: Annotated[float, Constraint(lambda x: x == 0 or 1 < x < math.inf, "use 0 or more than 1")] = 0.0
    """Ratio beyond which a bad action teaches nothing (Ye et al. 2020 have 3); 0 for none."""
    c1: NotNegative = 0.5
    """Weight of the value loss."""
    c2: NotNegative = 0.0
    """Weight of the master's entropy bonus."""
    sub_entropy: NotNegative = 0.0
    """Weight of the sub-policies' entropy bonus, at first (see --fade)."""
    explore: Fraction = 0.0
    """Probability that training replaces a master's decision by a uniformly random one, at first (see --fade)."""
    fade: CountOrNone = 0
    """Outer iterations over which --explore and --sub_entropy go linearly to 0; with 0 they stay."""
    hidden: Count = 64
    """Units in each of the two hidden layers of every network."""
    convolve: bool = True
    """Convolutions before the hidden layers, where observations are images; else these are flattened."""
    blind: CountOrNone = 0
    """Numbers at the beginning of an observation that sub-policies do not act by, such as where they are. Their values
    and the masters see them, a flat policy (--num_sub_policies 0), too; a shared one (--num_sub_policies 1) does not."""
    log_std: Finite = 0.0
    """Initial log standard deviation of continuous actions."""
    normalise: bool = True
    """Normalise observations by their running mean and variance, clipped to ±5; but not images of integers."""
    reward_scale: Positive = 1.0
    """Factor on rewards inside the learner; reported returns are without it."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile how training learns from a minibatch, which takes half a minute. auto does in long runs, where it can.
    Results are a function of the seed either way, but not the same."""
    record: CountOrNone = 10
    """Outer iterations between two sets of videos; 0 for none."""
    test_episodes: Annotated[int, at_least(2)] = 100
    """Episodes of each task in the final test."""

    @classmethod
    def defaults(cls, env):
        return cls(**{"env": env} | find_preset(env))

    def most_at_once(self, processes):
        return max(self.N * -(-self.groups // processes), self.test_episodes)

    @property
    def play(self):
        """Keyword arguments of `measure`; a flat policy (num_sub_policies 0) decides at every step."""
        return {"T": self.T, "high_len": self.high_len if self.num_sub_policies else 1}

    @property
    def rollout(self):
        """Keyword arguments of `collect`, without random decisions."""
        bootstrap = self.bootstrap or not self.num_sub_policies
        return self.play | self.only("gamma", "lam", "reward_scale") | {"bootstrap": bootstrap}

    def training_rollout(self, iteration):
        """Keyword arguments of `collect` for what an outer iteration learns from."""
        return self.rollout | {"explore": self.explore * self.faded(iteration) if self.num_sub_policies else 0.0}

    @property
    def master_ppo(self):
        """Keyword arguments of `update` for the masters."""
        decisions = self.N * -(-self.T // self.play["high_len"])
        return {
            "parts": -(-decisions // self.master_minibatch),
            **self.only("epochs", "epsilon", "dual_clip", "c1", "c2"),
        }

    def low_ppo(self, iteration):
        """Keyword arguments of `update` for the sub-policies at an outer iteration."""
        c2 = self.sub_entropy * self.faded(iteration)
        same = self.only("epochs", "epsilon", "dual_clip", "c1", "target_kl")
        return {"parts": self.sub_minibatches, "c2": c2, **same}

    def low_rate(self, iteration):
        """The sub-policies' learning rate at an outer iteration."""
        return self.sub_lr * self.sub_lr_decay**iteration

    @property
    def minibatches(self):
        """How many the run learns from."""
        low = self.U * self.sub_minibatches if self.num_sub_policies else 0
        return self.tasks * self.epochs * ((self.W + self.U) * self.master_ppo["parts"] + low)

    def settle(self):
        """Decide what is left to be decided when the run begins."""
        if self.compile == "auto":
            self.compile = "on" if self.minibatches >= MANY and possible(self.device) else "off"

    def faded(self, iteration):
        """What remains of --explore and --sub_entropy at an outer iteration: a factor in [0, 1]."""
        return max(0.0, 1 - iteration / self.fade) if self.fade else 1.0

    def validate(self):
        super().validate()
        if self.W == self.U == 0:
            raise UserError("-W 0 and -U 0 together learn nothing; make one of them positive")
        if self.U and not self.num_sub_policies:
            raise UserError(
                f"-U is {self.U}: without sub-policies (--num_sub_policies 0) there is no joint learning; use -U 0"
            )
