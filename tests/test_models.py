import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch.nn.functional import linear

from mlsh.models import ActorCritic, Normaliser


def actor_critic(space, n=3):
    policy = ActorCritic(n, 4, space, hidden=8, log_std=-0.5)
    policy.reset([np.random.default_rng(i) for i in range(n)])
    return policy


def test_members_are_separate_networks_with_separate_values():
    policy = actor_critic(Discrete(5))
    for parameter in policy.parameters():
        parameter.data += torch.randn_like(parameter)
    obs = torch.randn(3, 6, 4)
    params, value = policy(obs)
    assert params.shape == (3, 6, 5) and value.shape == (3, 6)
    for k in range(3):
        outputs = []
        for net, head in enumerate(("policy", "value")):
            x = linear(obs[k], policy.weight1[k, net].T, policy.bias1[k, net, 0]).tanh()
            x = linear(x, policy.weight2[k, net].T, policy.bias2[k, net, 0]).tanh()
            weight, bias = getattr(policy, f"{head}_weight")[k], getattr(policy, f"{head}_bias")[k, 0]
            outputs.append(linear(x, weight.T, bias))
        torch.testing.assert_close(params[k], outputs[0])
        torch.testing.assert_close(value[k], outputs[1][:, 0])
    torch.testing.assert_close(policy.params(obs), params)
    torch.testing.assert_close(policy.value(obs), value)


def test_reset_depends_on_each_members_generator_alone():
    policy, other = actor_critic(Discrete(5)), actor_critic(Discrete(5), n=2)
    for a, b in zip(policy.parameters(), other.parameters(), strict=True):
        assert torch.equal(a[:2], b)
    assert not torch.equal(policy.weight1[0], policy.weight1[1])
    torch.testing.assert_close(policy.weight2[0, 0] @ policy.weight2[0, 0].T, 2 * torch.eye(8))  # orthogonal, gain √2
    assert policy.policy_weight.abs().max() < 0.01 and policy.bias1.abs().max() == 0


def test_only_copies_members():
    policy = actor_critic(Box(-1, 1, (2,)))
    part = policy.only([2, 0])
    obs = torch.randn(1, 6, 4)
    torch.testing.assert_close(part.params(obs.expand(2, -1, -1)), policy.params(obs.expand(3, -1, -1))[[2, 0]])
    part.weight1.data += 1
    assert not torch.equal(part.weight1[1], policy.weight1[0])


def test_discrete_samples_follow_the_softmax():
    policy = actor_critic(Discrete(3))
    logits = torch.tensor([0.0, 1.0, -1.0])
    noise = torch.from_numpy(policy.noise(np.random.default_rng(0), 20_000))
    share = policy.sample(logits.expand(20_000, 3), noise).bincount() / 20_000
    torch.testing.assert_close(share, logits.softmax(0), atol=0.01, rtol=0)
    log_prob = policy.distribution(logits[None]).log_prob(torch.tensor([1]))
    assert log_prob.item() == pytest.approx(1 - np.log(1 + np.e + 1 / np.e), abs=1e-6)


def test_continuous_samples_are_unbounded_gaussians():
    policy = actor_critic(Box(-1, 1, (2,)))
    params = torch.tensor([3.0, -1.0, -0.5, 0.5])  # means, log standard deviations
    noise = torch.from_numpy(policy.noise(np.random.default_rng(0), 20_000))
    actions = policy.sample(params.expand(20_000, 4), noise)
    torch.testing.assert_close(actions.mean(0), params[:2], atol=0.05, rtol=0)
    torch.testing.assert_close(actions.std(0).log(), params[2:], atol=0.02, rtol=0)
    # at the mean the density is 1 / (2π σ₀ σ₁)
    log_prob = policy.distribution(params).log_prob(params[:2])
    assert log_prob.item() == pytest.approx(-np.log(2 * np.pi), abs=1e-6)
    assert policy.params(torch.zeros(3, 1, 4))[0, 0, 2:].tolist() == [-0.5, -0.5]


def test_normaliser_merges_to_the_statistics_of_all_it_saw():
    draw = np.random.default_rng(0)
    parts = [torch.tensor(draw.normal(3, 5, (size, 2))) for size in (1, 7, 100)]
    normaliser = Normaliser(2)
    assert torch.equal(normaliser(parts[1]), parts[1])  # nothing known yet
    for part in parts:
        normaliser.update(part)
    everything = torch.cat(parts)
    torch.testing.assert_close(normaliser.mean, everything.mean(0))
    torch.testing.assert_close(normaliser.var, everything.var(0, correction=0))
    before = normaliser.mean.clone()
    torch.testing.assert_close(normaliser(everything.mean(0, True).float()), torch.zeros(1, 2), atol=1e-5, rtol=0)
    assert normaliser(torch.tensor([[1e9, -1e9]])).tolist() == [[5, -5]]
    assert torch.equal(normaliser.mean, before)


def test_normaliser_can_be_off():
    normaliser = Normaliser(2, enabled=False)
    normaliser.update(torch.randn(9, 2))
    x = torch.tensor([[100.0, -7.0]])
    assert torch.equal(normaliser(x), x)


def test_the_normaliser_sees_every_one_of_many_observations():
    x = torch.cat((torch.zeros(2**14, 1), torch.full((2**14 + 1, 1), 2.0)))  # more than it takes at a time
    normaliser = Normaliser(1)
    normaliser.update(x)
    assert normaliser.count == len(x)
    torch.testing.assert_close(normaliser.mean, x.double().mean(0))
    torch.testing.assert_close(normaliser.var, x.double().var(0, correction=0))
