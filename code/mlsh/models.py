"""The master policy, the sub-policies, the agent of them, and the recurrent policy of RL²."""

import math
from typing import NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Discrete
from torch import nn

from mlsh.errors import UserError
from mlsh.networks import Image, Trunk, hidden_layers
from mlsh.normaliser import Normaliser


class Policy(nn.Module):
    """Actions of a space and the distribution over them.

    A Discrete space gets a softmax policy, a Box a Gaussian with a state-independent log standard deviation.
    Throughout, `params` are the parameters of that distribution: logits [..., A], or means and log standard deviations
    [..., 2A].
    """

    def __init__(self, action_space):
        super().__init__()
        self.discrete = isinstance(action_space, Discrete)
        self.action_size = int(action_space.n) if self.discrete else math.prod(action_space.shape)

    def distribution(self, params):
        if self.discrete:
            return torch.distributions.Categorical(logits=params, validate_args=False)
        mean, log_std = params.chunk(2, -1)
        normal = torch.distributions.Normal(mean, log_std.exp(), validate_args=False)
        return torch.distributions.Independent(normal, 1, validate_args=False)

    def noise(self, rng, *shape):
        """The randomness that `sample` wants, a float32 array of `shape` + [A]: Gumbel or standard normal."""
        size = (*shape, self.action_size)
        if self.discrete:
            exponential = rng.standard_exponential(size, dtype=np.float32)
            return -np.log(np.maximum(exponential, np.finfo(np.float32).tiny))  # a float32 draw can be 0
        return rng.standard_normal(size, dtype=np.float32)

    def sample(self, params, noise):
        """The action that `noise` picks: an index [...], or an unbounded vector [..., A]."""
        if self.discrete:
            return (params + noise).argmax(-1)
        mean, log_std = params.chunk(2, -1)
        return mean + log_std.exp() * noise


class ActorCritic(Policy):
    """n independent actor-critics over one pair of spaces: the G masters, or the K sub-policies.

    Policy and value are separate networks with two hidden tanh layers. Every parameter leads with n, the hidden layers
    with [n, 2] (policy, value), so a layer of all of them is one batched matmul. Observations are vectors; those of an
    `image` (`networks.Image`) pass a `Trunk` first. What the policy does is independent of the first `blind` numbers of
    an observation; its value is not (as the critic in Pinto et al. 2018, it may know more than what acts). `name` is
    for error messages; if `compiled`, `ppo.update` compiles.
    """

    def __init__(
        self, n, obs_size, action_space, hidden=64, log_std=0.0, name="policy", image=None, blind=0, compiled=False
    ):
        super().__init__(action_space)
        self.n = n
        self.name = name
        self.compiled = compiled
        self._networks = (obs_size, action_space, hidden, log_std, name, image, blind)
        self.trunk = Trunk(n, image) if image else None
        for parameter, *shape in (
            ("weight1", 2, self.trunk.size if image else obs_size, hidden),
            ("bias1", 2, 1, hidden),
            ("weight2", 2, hidden, hidden),
            ("bias2", 2, 1, hidden),
            ("policy_weight", hidden, self.action_size),
            ("policy_bias", 1, self.action_size),
            ("value_weight", hidden, 1),
            ("value_bias", 1, 1),
        ):
            self.register_parameter(parameter, nn.Parameter(torch.zeros(n, *shape)))
        if not self.discrete:
            self.log_std = nn.Parameter(torch.zeros(n, 1, self.action_size))
        seen = torch.ones(2, obs_size, 1)
        seen[0, :blind] = 0
        self.register_buffer("_seen", seen if blind else None, persistent=False)

    @torch.no_grad()
    def reset(self, rngs):
        """Draw all parameters anew, member i's with the NumPy generator `rngs[i]`: orthogonal weights, zero biases."""
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
            self.log_std.fill_(self._networks[3])

    def like(self, n):
        """A new ActorCritic of n members with the same networks, on the same device, its parameters zero, its own."""
        return ActorCritic(n, *self._networks).to(self.policy_bias.device)

    def joined(self, states):
        """A new ActorCritic of the members of several, given as state dicts, one after the other."""
        state = {name: torch.cat([s[name].to(self.policy_bias.device) for s in states]) for name in states[0]}
        joined = self.like(len(state["policy_bias"]))
        joined.load_state_dict(state)
        return joined

    def only(self, members):
        """A copy of the listed members."""
        copy = self.like(len(members))
        copy.load_state_dict({name: tensor[members] for name, tensor in self.state_dict().items()})
        return copy

    def part(self, members):
        """Those `members` (a range) as an ActorCritic with the same parameters: what changes one changes the other."""
        part = self.like(len(members))
        part.compiled = self.compiled
        for theirs, mine in zip(part.parameters(), self.parameters(), strict=True):
            theirs.data = mine.data[members.start : members.stop]
        return part

    def _params(self, h):
        out = torch.baddbmm(self.policy_bias, h, self.policy_weight)
        return out if self.discrete else torch.cat((out, self.log_std.expand_as(out)), -1)

    def _value(self, h):
        return torch.baddbmm(self.value_bias, h, self.value_weight)[..., 0]

    def _hidden_parameters(self):
        weight1 = self.weight1 if self._seen is None else self.weight1 * self._seen
        return weight1, self.bias1, self.weight2, self.bias2  # [n, 2, ...]

    def forward(self, obs):
        """Params [n, B, A or 2A] and value [n, B] at obs [n, B, obs]."""
        x = self.trunk(obs) if self.trunk else obs.float()[:, None].expand(-1, 2, -1, -1).flatten(0, 1)
        x = hidden_layers(x, *(p.flatten(0, 1) for p in self._hidden_parameters()))
        policy, value = x.view(self.n, 2, *x.shape[1:]).unbind(1)
        return self._params(policy), self._value(value)

    def params(self, obs):
        """The policy alone: [n, B, obs] -> [n, B, A or 2A]."""
        return self._params(self._hidden_of(obs, 0))

    def value(self, obs):
        """The value alone: [n, B, obs] -> [n, B]."""
        return self._value(self._hidden_of(obs, 1))

    def _hidden_of(self, obs, network):  # 0 for the policy, 1 for the value: [n, B, obs] -> [n, B, hidden]
        x = self.trunk(obs, slice(network, network + 1)) if self.trunk else obs.float()
        return hidden_layers(x, *(p[:, network] for p in self._hidden_parameters()))


class RecurrentPolicy(Policy):
    """RL²'s: a GRU that sees observation, last action, last reward and whether an episode begins, not the task."""

    def __init__(self, obs_size, action_space, hidden=64, log_std=0.0, normalise=False):
        super().__init__(action_space)
        self.normaliser = Normaliser(obs_size) if normalise else nn.Identity()
        self.obs_size = obs_size
        self.gru = nn.GRU(obs_size + self.action_size + 2, hidden)
        self.heads = nn.Linear(hidden, self.action_size + 1)
        if not self.discrete:
            self.log_std = nn.Parameter(torch.full((self.action_size,), log_std))

    @torch.no_grad()
    def reset(self, rng):
        """Draw all parameters anew with the NumPy generator `rng`: orthogonal weights, zero biases."""
        generator = torch.Generator().manual_seed(int(rng.integers(2**32)))
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                gain = 0.01 if name == "heads.weight" else 1.0
                parameter.copy_(nn.init.orthogonal_(torch.empty(parameter.shape), gain, generator=generator))
            elif name != "log_std":
                parameter.zero_()

    def forward(self, x, h=None):
        """Params [S, E, A or 2A], value [S, E] and hidden state [1, E, hidden] after inputs x [S, E, …]."""
        x = torch.cat((self.normaliser(x[..., : self.obs_size]), x[..., self.obs_size :]), -1)
        x, h = self.gru(x, h)
        params, value = self.heads(x).split((self.action_size, 1), -1)
        if not self.discrete:
            params = torch.cat((params, self.log_std.expand_as(params)), -1)
        return params, value[..., 0], h

    def input(self, obs, action, reward, begins):
        """What the GRU sees, [E, …]; `action` is None before the first."""
        if action is None:
            action = torch.zeros(len(obs), self.action_size, device=obs.device)
        elif self.discrete:
            action = nn.functional.one_hot(action, self.action_size)
        return torch.cat((obs, action, reward[:, None], torch.full_like(reward, begins)[:, None]), 1)


class Hierarchy(NamedTuple):
    """The agent: G masters (θ, one a task group), K sub-policies (φ, shared), the normaliser before them all."""

    master: ActorCritic
    subs: ActorCritic
    normaliser: Normaliser

    @classmethod
    def build(cls, cfg, env, masters=None, gather=None):
        """The agent of a `Config` for a batched environment, all parameters zero: call reset on master and subs.

        `masters`: their number, if not all `cfg.groups` are this process's; `gather`: see `Normaliser`. Without
        sub-policies (`num_sub_policies` 0) the masters are policies over the environment's own actions. Images of integers are
        not normalised: the trunk scales them.
        """
        space = env.single_observation_space
        obs_size, image = math.prod(space.shape), Image.of(space) if cfg.convolve else None
        if cfg.blind and (image or cfg.blind >= obs_size):
            most = "0, of an image all is needed" if image else f"less than {obs_size}, an observation's size"
            raise UserError(f"--blind is {cfg.blind}: use {most}")
        choices = Discrete(cfg.num_sub_policies) if cfg.num_sub_policies else env.single_action_space
        networks = {"hidden": cfg.hidden, "log_std": cfg.log_std, "image": image, "compiled": cfg.compile == "on"}
        master = ActorCritic(masters or cfg.groups, obs_size, choices, name="master", **networks)
        networks |= {"name": "sub-policy", "blind": cfg.blind}
        subs = ActorCritic(cfg.num_sub_policies, obs_size, env.single_action_space, **networks)
        normalise = cfg.normalise and not (image and image.scale)
        normaliser = Normaliser(0 if image and not normalise else obs_size, normalise, gather)
        return cls(*(part.to(cfg.device) for part in (master, subs, normaliser)))
