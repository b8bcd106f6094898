"""Play episodes in E slots side by side. Every learner plays through this module, with an actor of its own."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlsh.envs.base import VectorTasks

OnStep = Callable[[], None]  # called after the reset, and after each env step


class Transition(NamedTuple):
    """One env step of E slots."""

    obs: Tensor  # [E, obs], before the step
    action: Tensor  # [E] or [E, A]
    reward: Tensor  # [E], 0 in a slot whose only episode is over
    following: Tensor  # [E, obs], what the step led to; `obs` again where the episode terminated or was over
    terminated: Tensor  # [E], meaningless where no episode was under way
    truncated: Tensor  # [E], likewise
    alive: Tensor  # [E], whether an episode was under way


class Truncations(NamedTuple):
    """The F episodes that were truncated before the last step of a rollout."""

    step: Tensor  # [F], the episode's last step
    slot: Tensor  # [F]
    following: Tensor  # [F, obs], what that step led to


class SlotRecord(NamedTuple):
    """What happened in E slots within T steps. Images are flattened and keep their dtype."""

    obs: Tensor  # [T + 1, E, obs], before each step and after the last
    reward: Tensor  # [T, E]
    terminated: Tensor  # [T, E]
    truncated: Tensor  # [T, E]
    alive: Tensor  # [T, E]
    truncations: Truncations
    final: dict[str, Tensor]  # numbers [E] that the info of each slot's last step held, by name; `play_episodes` only
    diverged: Tensor  # [E], the number of episodes whose simulation diverged

    @property
    def ended(self) -> Tensor:
        """Whether an episode ended with the step, [T, E]."""
        return (self.terminated | self.truncated) & self.alive


class Slots:
    """E slots, each with an episode under way, and the record of their steps so far."""

    def __init__(self, env: VectorTasks, seeds: Sequence[int], T: int) -> None:
        self.env, self.t = env, 0
        self.obs: Tensor = env.reset(seed=list(seeds))[0].flatten(1)  # [E, obs], what each slot observes now
        self.alive = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
        self.begun = torch.zeros(env.num_envs, dtype=torch.long, device=env.device)  # the step its episode began at
        self.some_begin = True  # whether an episode begins at this step in any slot
        self.some_ended = False  # whether one ended with the step before
        self._all_alive = True
        # No episode can end before this step, so ends are not checked until then. A check would wait for a GPU.
        self._earliest_end = 1 if env.terminates else min(T, env.max_episode_steps or T)
        self._obs = self.obs.new_empty(T + 1, *self.obs.shape)
        self._steps: list[tuple[Tensor, ...]] = []
        self._truncations = [Truncations(self.begun[:0], self.begun[:0], self.obs[:0])]
        self._final: dict[str, Tensor] = {}
        self._diverged = torch.zeros_like(self.begun)

    def step(self, action: Tensor) -> tuple[Transition, dict[str, Tensor]]:
        """Take an env step in every slot. Returns it, and the info of the environment."""
        obs, alive = self.obs, self.alive
        self._obs[self.t] = obs
        new_obs, reward, terminated, truncated, info = self.env.step(action)
        following = new_obs.flatten(1)
        if not self._all_alive:
            reward = torch.where(alive, reward, 0)
        self.t += 1
        self.some_begin = False
        self.some_ended = self.t >= self._earliest_end and bool((terminated | truncated).any())
        if self.some_ended or not self._all_alive:  # what comes after an episode's end means nothing
            following = torch.where((alive & ~terminated)[:, None], following, obs)
        if "diverged" in info:
            self._diverged = self._diverged + (alive & (info["diverged"] > 0))
        self._steps.append((reward, terminated, truncated, alive))
        self.obs = following
        return Transition(obs, action, reward, following, terminated, truncated, alive), info

    def begin_again(self, transition: Transition) -> None:
        """Begin a new episode in each slot whose episode ended with this transition."""
        truncated = (transition.truncated & ~transition.terminated).nonzero()[:, 0]
        last = torch.full_like(truncated, self.t - 1)
        self._truncations.append(Truncations(last, truncated, transition.following[truncated]))
        ended = transition.terminated | transition.truncated
        self.obs = self.env.reset(options={"reset_mask": ended})[0].flatten(1)
        self.begun = torch.where(ended, self.t, self.begun)
        self.some_begin = True

    def retire(self, transition: Transition) -> None:
        """Stop playing in each slot whose episode ended with this transition."""
        self._all_alive = False
        self.alive = self.alive & ~(transition.terminated | transition.truncated)

    def keep_final(self, info: dict[str, Tensor]) -> None:
        """Keep the info's tensors [E]; each slot keeps those of its episode's last step."""
        for name, x in info.items():
            if isinstance(x, Tensor) and x.shape == self.alive.shape:
                self._final[name] = torch.where(self.alive, x, self._final.get(name, x))

    def record(self) -> SlotRecord:
        """The record of all steps so far.

        Raises FloatingPointError for a reward or an observation that is NaN or infinite, and EnvironmentFailed for an
        episode that ended although the environment states that it cannot.
        """
        self._obs[self.t] = self.obs
        obs = self._obs[: self.t + 1]
        reward, terminated, truncated, alive = (torch.stack(x) for x in zip(*self._steps, strict=True))
        truncations = Truncations(*(torch.cat(x) for x in zip(*self._truncations, strict=True)))
        self.env.check_no_early_end((terminated | truncated)[: self._earliest_end - 1])
        check_finite(self.env, reward, obs)
        if len(truncations.step) and not truncations.following.isfinite().all():
            row = int((~truncations.following.isfinite().all(-1)).nonzero()[0])
            raise not_finite(self.env, "an observation", int(truncations.step[row]) + 1, int(truncations.slot[row]))
        return SlotRecord(obs, reward, terminated, truncated, alive, truncations, self._final, self._diverged)


class Actor:
    """Chooses the actions in the slots. A subclass may keep a record of its own, and may learn."""

    def act(self, slots: Slots) -> Tensor:
        """The actions [E] or [E, A] at `slots.obs`."""
        raise NotImplementedError

    def observe(self, transition: Transition) -> None:
        """Called after each env step, before new episodes begin."""


@torch.no_grad()
def play_rollout(
    env: VectorTasks, actor: Actor, seeds: Sequence[int], T: int, on_step: OnStep | None = None
) -> SlotRecord:
    """Play `T` steps in every slot. A slot whose episode ends begins another.

    `seeds`: one per block of neighbouring slots (see `VectorTasks.reset`).
    """
    slots = Slots(env, seeds, T)
    if on_step:
        on_step()
    while slots.t < T:
        transition, _ = slots.step(actor.act(slots))
        actor.observe(transition)
        if slots.some_ended and slots.t < T:
            slots.begin_again(transition)
        if on_step:
            on_step()
    return slots.record()


@torch.no_grad()
def play_episodes(
    env: VectorTasks, actor: Actor, seeds: Sequence[int], T: int, on_step: OnStep | None = None
) -> SlotRecord:
    """Play one episode of at most `T` steps in every slot; stop when all are over.

    With several episodes per slot within a fixed time, short episodes would be over-represented.
    """
    slots = Slots(env, seeds, T)
    if on_step:
        on_step()
    alive = True
    while slots.t < T and alive:
        transition, info = slots.step(actor.act(slots))
        actor.observe(transition)
        slots.keep_final(info)
        if slots.some_ended:
            slots.retire(transition)
            alive = bool(slots.alive.any())
        if on_step:
            on_step()
    return slots.record()


def draw_seeds(rngs: Sequence[np.random.Generator]) -> list[int]:
    """A seed for the environment from each generator."""
    return [int(rng.integers(2**63)) for rng in rngs]


def check_finite(env: VectorTasks, reward: Tensor, obs: Tensor) -> None:
    """Raise a FloatingPointError for the first reward [T, E] or observation [T or T + 1, E, …] that is not finite."""
    if reward.sum().isfinite() and obs.sum().isfinite():  # cheaper than testing each number
        return
    of_rewards, of_observations = reward.isfinite(), obs.isfinite().all(-1)
    for name, finite, step in (("a reward", of_rewards, 1), ("an observation", of_observations, 0)):  # number of row 0
        if not finite.all():
            t, e = (~finite).nonzero()[0].tolist()
            raise not_finite(env, name, t + step, e)


def not_finite(env: VectorTasks, what: str, step: int, slot: int) -> FloatingPointError:
    return FloatingPointError(f"the environment gave {what} that is not finite at step {step}, task {env.task[slot]}")
