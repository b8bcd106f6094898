"""The master policies, the sub-policies, and the agent made of them."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal
from torch.func import functional_call

from mlsh.errors import UserError
from mlsh.networks import Blocks, Image, Trunk, hidden_layers
from mlsh.normaliser import Normaliser

ALL = slice(None)
FEW = 400  # observations times members, up to which all members are evaluated at all observations


class Policy(nn.Module):
    """A policy over an action space: its distribution, and sampling.

    A Discrete space gets a softmax policy, and a Box a Gaussian with a state-independent log standard deviation.
    Throughout, `params` are the parameters of that distribution: logits [..., A], or means and log standard deviations
    [..., 2A].
    """

    def __init__(self, action_space: Space[Any]) -> None:
        super().__init__()
        self.discrete = isinstance(action_space, Discrete)
        self.action_size = int(action_space.n) if isinstance(action_space, Discrete) else size_of(action_space)

    def distribution(self, params: Tensor) -> Distribution:
        if self.discrete:
            return Categorical(logits=params, validate_args=False)
        mean, log_std = params.chunk(2, -1)
        return Independent(Normal(mean, log_std.exp(), validate_args=False), 1, validate_args=False)

    def noise(self, rng: np.random.Generator, *shape: int) -> np.ndarray:
        """The randomness that `sample` needs, a float32 array of `shape` + [A]: Gumbel or standard normal."""
        size = (*shape, self.action_size)
        if self.discrete:
            exponential = rng.standard_exponential(size, dtype=np.float32)
            return -np.log(np.maximum(exponential, np.finfo(np.float32).tiny))  # a float32 draw can be 0
        return rng.standard_normal(size, dtype=np.float32)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """The action that `noise` selects: an index [...], or an unbounded vector [..., A]."""
        if self.discrete:
            return (params + noise).argmax(-1)
        mean, log_std = params.chunk(2, -1)
        return mean + log_std.exp() * noise


class ActorCritic(Policy):
    """n independent actor-critics over one pair of spaces: the G masters, or the K sub-policies.

    Policy and value are separate networks with two hidden tanh layers. Every parameter leads with n, and those of the
    hidden layers with [n, 2] for policy and value. So one layer of all networks is one batched matmul. Observations are
    vectors. Those that show an `image` pass a `Trunk` first.

    `actor_sees` and `critic_sees` select the numbers of an observation that policy and value depend on. They may differ
    (an asymmetric critic, as in Pinto et al. 2018). `name` is for error messages. If `compiled` is set, `ppo.update`
    compiles.
    """

    def __init__(
        self,
        n: int,
        obs_size: int,
        action_space: Space[Any],
        hidden: int = 64,
        log_std: float = 0.0,
        name: str = "policy",
        image: Image | None = None,
        actor_sees: slice = ALL,
        critic_sees: slice = ALL,
    ) -> None:
        super().__init__(action_space)
        self.n = n
        self.name = name
        self.compiled = False
        self._log_std = log_std
        self._networks = (obs_size, action_space, hidden, log_std, name, image, actor_sees, critic_sees)
        self.trunk = Trunk(n, image) if image else None
        self.weight1 = zeros(n, 2, self.trunk.size if self.trunk else obs_size, hidden)
        self.bias1 = zeros(n, 2, 1, hidden)
        self.weight2 = zeros(n, 2, hidden, hidden)
        self.bias2 = zeros(n, 2, 1, hidden)
        self.policy_weight = zeros(n, hidden, self.action_size)
        self.policy_bias = zeros(n, 1, self.action_size)
        self.value_weight = zeros(n, hidden, 1)
        self.value_bias = zeros(n, 1, 1)
        if not self.discrete:
            self.log_std = zeros(n, 1, self.action_size)
        self._visible: Tensor | None
        visible = torch.zeros(2, obs_size, 1)
        visible[0, actor_sees] = visible[1, critic_sees] = 1
        self.register_buffer("_visible", None if visible.all() else visible, persistent=False)

    @property
    def device(self) -> torch.device:
        return self.policy_bias.device

    @property
    def splits(self) -> bool:
        """Whether `forward` takes `rows`. Convolutions would be compiled again for each number of rows."""
        return self.trunk is None

    @torch.no_grad()
    def reset(self, rngs: Sequence[np.random.Generator]) -> None:
        """Draw new parameters, member i's with `rngs[i]`: orthogonal weights, zero biases."""
        gains = {"weight1": math.sqrt(2), "weight2": math.sqrt(2), "policy_weight": 0.01, "value_weight": 1.0}
        for parameter in self.parameters():
            parameter.zero_()
        for i, rng in enumerate(rngs):
            generator = torch.Generator().manual_seed(int(rng.integers(2**32)))
            for name, gain in gains.items():
                for weight in getattr(self, name)[i].view(-1, *getattr(self, name).shape[-2:]):
                    weight.copy_(nn.init.orthogonal_(torch.empty(weight.shape), gain, generator=generator))
            if self.trunk:
                self.trunk.reset(i, generator)
        if not self.discrete:
            self.log_std.fill_(self._log_std)

    @torch.no_grad()
    def spread(self, scale: float, rng: np.random.Generator) -> None:
        """Add normal noise to the policies' output biases, with standard deviation `scale`.

        Neighbours (0 and 1, 2 and 3, …) get opposite noise.
        """
        drawn = rng.standard_normal((math.ceil(self.n / 2), self.action_size), dtype=np.float32)
        opposite = np.stack((drawn, -drawn), 1).reshape(-1, 1, self.action_size)[: self.n]
        self.policy_bias += scale * torch.from_numpy(opposite).to(self.device)

    def like(self, n: int) -> Self:
        """A new ActorCritic of n members with networks of the same shape, its parameters zero."""
        return type(self)(n, *self._networks).to(self.device)

    def concatenated(self, states: Sequence[dict[str, Tensor]]) -> Self:
        """A new ActorCritic with the members of several others, in order; `states` are their state dicts."""
        state = {name: torch.cat([s[name].to(self.device) for s in states]) for name in states[0]}
        policy = self.like(len(state["policy_bias"]))
        policy.load_state_dict(state)
        return policy

    def copies_of(self, members: Sequence[int]) -> Self:
        """A new ActorCritic with copies of the listed members."""
        policy = self.like(len(members))
        policy.load_state_dict({name: tensor[list(members)] for name, tensor in self.state_dict().items()})
        return policy

    def view_of(self, members: range) -> Self:
        """Some members as an ActorCritic that shares their parameters: what changes one changes the other."""
        view = self.like(len(members))
        view.compiled = self.compiled
        for theirs, mine in zip(view.parameters(), self.parameters(), strict=True):
            theirs.data = mine.data[members.start : members.stop]
        return view

    def forward(self, obs: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Params [R, B, A or 2A] and value [R, B] at observations [R, B, obs].

        Without `rows`, R is n, and each member has one row. `rows` [R, n] is 1 where a row belongs to a member, else 0.
        """
        if rows is not None:
            # A gradient that is not finite spreads to all members here. With `index_select` it would not. But torch
            # compiles the gradient of `index_select` to sums whose order depends on the threads.
            copies = {name: (rows @ p.flatten(1)).view(-1, *p.shape[1:]) for name, p in self.named_parameters()}
            return functional_call(self, copies, obs)
        x = self.trunk(obs) if self.trunk else obs.float()[:, None].expand(-1, 2, -1, -1).flatten(0, 1)
        x = hidden_layers(x, *(p.flatten(0, 1) for p in self._hidden_parameters()))
        policy, value = x.view(-1, 2, *x.shape[1:]).unbind(1)
        return self._params(policy), self._value(value)

    def params(self, obs: Tensor) -> Tensor:
        """The policy alone: [n, B, obs] -> [n, B, A or 2A]."""
        return self._params(self._hidden_of(obs, 0))

    def value(self, obs: Tensor) -> Tensor:
        """The value alone: [n, B, obs] -> [n, B]."""
        return self._value(self._hidden_of(obs, 1))

    def params_of(self, member: Tensor) -> Callable[[Tensor], Tensor]:
        """A function from observations [S, obs] to the params [S, A or 2A] of their members' policies, `member` [S].

        The function may keep copies of the members' parameters, so it is out of date once these change.
        """
        if self._evaluates_all(len(member)):
            slot = torch.arange(len(member), device=member.device)
            return lambda obs: self.params(obs.expand(self.n, *obs.shape))[member, slot]
        blocks = Blocks.of(member, self.n)
        layers = [p[blocks.network, 0] for p in self._hidden_parameters()]
        weight, bias = self.policy_weight[blocks.network], self.policy_bias[blocks.network]
        log_std = None if self.discrete else self.log_std[member, 0]

        def params(obs: Tensor) -> Tensor:
            hidden = hidden_layers(blocks.gather(obs).float(), *layers)
            out = blocks.scatter(torch.baddbmm(bias, hidden, weight))
            return out if log_std is None else torch.cat((out, log_std), -1)

        return params

    def values_of(self, member: Tensor, obs: Tensor) -> Tensor:
        """The value [S] of each observation [S, obs] by its `member` [S]."""
        if self._evaluates_all(len(member)):
            return self.value(obs.expand(self.n, *obs.shape)).gather(0, member[None])[0]
        blocks = Blocks.of(member, self.n)
        layers = [p[blocks.network, 1] for p in self._hidden_parameters()]
        hidden = hidden_layers(blocks.gather(obs).float(), *layers)
        weight, bias = self.value_weight[blocks.network], self.value_bias[blocks.network]
        return blocks.scatter(torch.baddbmm(bias, hidden, weight))[:, 0]

    def _evaluates_all(self, S: int) -> bool:
        """Whether it is faster to evaluate every member at S observations than to sort these by member."""
        return self.n == 1 or self.n * S <= FEW or self.trunk is not None

    def _hidden_of(self, obs: Tensor, network: int) -> Tensor:
        """The last hidden layer of the policy (0) or the value (1): [n, B, obs] -> [n, B, hidden]."""
        x = self.trunk(obs, slice(network, network + 1)) if self.trunk else obs.float()
        return hidden_layers(x, *(p[:, network] for p in self._hidden_parameters()))

    def _hidden_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [n, 2, ...] each
        weight1 = self.weight1 if self._visible is None else self.weight1 * self._visible
        return weight1, self.bias1, self.weight2, self.bias2

    def _params(self, hidden: Tensor) -> Tensor:
        out = torch.baddbmm(self.policy_bias, hidden, self.policy_weight)
        return out if self.discrete else torch.cat((out, self.log_std.expand_as(out)), -1)

    def _value(self, hidden: Tensor) -> Tensor:
        return torch.baddbmm(self.value_bias, hidden, self.value_weight)[..., 0]


class HierarchySettings(Protocol):
    """The settings, such as those of a `Config`, that a `Hierarchy` is built from."""

    groups: int
    num_sub_policies: int
    hidden: int
    log_std: float
    convolve: bool
    blind: int
    master_sees: int
    normalise: bool
    device: str


class HasSpaces(Protocol):
    """A batched environment, as far as its spaces are concerned."""

    single_observation_space: Any
    single_action_space: Any


class Hierarchy(NamedTuple):
    """The agent: G masters θ, one per task group, the K sub-policies φ that they share, and a normaliser.

    In a test in which sub-policies adapt, each master has K of its own: `sub_policies` holds G · K, master by master.
    """

    master: ActorCritic
    sub_policies: ActorCritic
    normaliser: Normaliser

    @property
    def K(self) -> int:
        """The number of sub-policies that a master chooses from; 0 for flat policies."""
        return self.master.action_size if self.sub_policies.n else 0

    @property
    def sets(self) -> int:
        """The number of sets of K sub-policies: 1 if the masters share them, else G; 0 for flat policies."""
        return self.sub_policies.n // self.K if self.K else 0

    def member(self, active: Tensor, group: Tensor) -> Tensor:
        """The index in `sub_policies` of each group's `active` sub-policy; both are indices of one shape."""
        return active + self.K * group if self.sets > 1 else active

    @classmethod
    def build(
        cls,
        cfg: HierarchySettings,
        env: HasSpaces,
        masters: int | None = None,
        gather: Callable[[Any], list[Any]] | None = None,
    ) -> "Hierarchy":
        """The agent for a batched environment. All parameters are zero: call reset on master and sub-policies.

        `masters` is their number, if this process does not play all `cfg.groups`; for `gather` see `Normaliser`.
        Without sub-policies the masters are policies over the environment's own actions. Images of integers are not
        normalised, since the trunk scales them. Raises UserError if `cfg.blind` leaves nothing to see, or if
        `cfg.master_sees` is more than there is.
        """
        space = env.single_observation_space
        obs_size, image = size_of(space), Image.of(space) if cfg.convolve else None
        if cfg.blind and (image or cfg.blind >= obs_size):
            remedy = "0, since images are seen as a whole" if image else f"less than {obs_size}, an observation's size"
            raise UserError(f"--blind is {cfg.blind}: use {remedy}")
        if cfg.master_sees and (image or cfg.master_sees > obs_size):
            remedy = "0, since images are seen as a whole" if image else f"at most {obs_size}, an observation's size"
            raise UserError(f"--master_sees is {cfg.master_sees}: use {remedy}")
        by_master = slice(cfg.master_sees or None) if cfg.num_sub_policies else ALL
        choices = Discrete(cfg.num_sub_policies) if cfg.num_sub_policies else env.single_action_space
        shared: dict[str, Any] = {"hidden": cfg.hidden, "log_std": cfg.log_std, "image": image}
        master = ActorCritic(
            masters or cfg.groups,
            obs_size,
            choices,
            name="master",
            actor_sees=by_master,
            critic_sees=by_master,
            **shared,
        )
        sub_policies = ActorCritic(
            cfg.num_sub_policies,
            obs_size,
            env.single_action_space,
            name="sub-policy",
            actor_sees=slice(cfg.blind, None),
            **shared,
        )
        normalise = cfg.normalise and not (image and image.scale)
        normaliser = Normaliser(0 if image and not normalise else obs_size, normalise, gather)
        return cls(master.to(cfg.device), sub_policies.to(cfg.device), normaliser.to(cfg.device))


def zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape))


def size_of(space: Space[Any]) -> int:
    """How many numbers a Box has."""
    assert isinstance(space, Box) and space.shape is not None
    return math.prod(space.shape)
