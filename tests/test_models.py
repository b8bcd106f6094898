import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn
from torch.nn.functional import linear

from mlsh import networks
from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.models import ActorCritic, Hierarchy
from mlsh.networks import Image
from mlsh.normaliser import Normaliser


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


def test_spread_gives_neighbours_opposite_biases():
    policy = actor_critic(Discrete(5), n=3)
    policy.spread(0.0, np.random.default_rng(0))
    assert not policy.policy_bias.any()
    policy.spread(0.5, np.random.default_rng(0))
    first, second, third = policy.policy_bias
    assert torch.equal(first, -second) and not torch.equal(first, third)
    many = actor_critic(Discrete(5), n=2000)
    many.spread(0.5, np.random.default_rng(0))
    assert abs(many.policy_bias[::2].std().item() - 0.5) < 0.02


def test_only_copies_members():
    policy = actor_critic(Box(-1, 1, (2,)))
    part = policy.copies_of([2, 0])
    obs = torch.randn(1, 6, 4)
    torch.testing.assert_close(part.params(obs.expand(2, -1, -1)), policy.params(obs.expand(3, -1, -1))[[2, 0]])
    part.weight1.data += 1
    assert not torch.equal(part.weight1[1], policy.weight1[0])


def test_what_blind_policies_do_is_independent_of_the_first_numbers_but_their_values_are_not():
    blind = ActorCritic(3, 4, Box(-1, 1, (2,)), hidden=8, actor_sees=slice(2, None))
    blind.reset([np.random.default_rng(i) for i in range(3)])
    obs = torch.randn(3, 6, 4)
    first, last = (obs.clone() for _ in range(2))
    first[..., :2], last[..., 2:] = 1.0, 1.0
    for policy in (blind, blind.like(3), blind.copies_of([0, 1, 2]), blind.view_of(range(3))):
        policy.load_state_dict(blind.state_dict())
        for params in (policy.params, lambda x, policy=policy: policy(x)[0]):
            assert torch.equal(params(first), params(obs)) and not torch.equal(params(last), params(obs))
        for value in (policy.value, lambda x, policy=policy: policy(x)[1]):
            assert not torch.equal(value(first), value(obs)) and not torch.equal(value(last), value(obs))
        torch.testing.assert_close(policy(obs), (policy.params(obs), policy.value(obs)))


def test_sub_policies_are_blind_and_masters_are_not():
    env = make_env(Config(), 1)
    agent = Hierarchy.build(Config(blind=5), env)
    for parameter in (*agent.master.parameters(), *agent.sub_policies.parameters()):
        parameter.data += torch.randn_like(parameter)
    a, b = torch.zeros(2, 1, 1, 6)
    b[..., 4] = 1.0
    assert torch.equal(agent.sub_policies.params(a.expand(2, -1, -1)), agent.sub_policies.params(b.expand(2, -1, -1)))
    assert not torch.equal(agent.master.params(a), agent.master.params(b))


def test_masters_see_the_first_numbers_only_but_flat_policies_see_all():
    env = make_env(Config(), 1)
    for K in (2, 0):
        master = Hierarchy.build(Config(master_sees=2, num_sub_policies=K), env).master
        for parameter in master.parameters():
            parameter.data += torch.randn_like(parameter)
        for member in (master, master.like(1)):
            member.load_state_dict(master.state_dict())
            unseen, seen = (torch.zeros(1, 1, 6).index_fill(2, torch.tensor(i), 1.0) for i in (3, 1))
            for output in (member.params, member.value):
                assert torch.equal(output(unseen), output(torch.zeros(1, 1, 6))) == (K == 2)
                assert not torch.equal(output(seen), output(torch.zeros(1, 1, 6)))


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
    above = (everything.mean(0) + 2 * everything.std(0, correction=0)).float()[None]
    torch.testing.assert_close(normaliser(above), torch.full((1, 2), 2.0))
    assert normaliser(torch.tensor([[1e9, -1e9]])).tolist() == [[5, -5]]
    assert torch.equal(normaliser.mean, before)
    frozen = normaliser.frozen()
    normaliser.update(torch.full((1000, 2), 99.0))
    torch.testing.assert_close(frozen(above), torch.full((1, 2), 2.0))
    assert (normaliser(above) < 1).all()


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


def test_what_is_an_image():
    assert Image.of(Box(0, 255, (84, 84, 4), np.uint8)) == (84, 84, 4, 255)
    assert Image.of(Box(0, 1, (8, 16, 1), np.uint8)) == (8, 16, 1, 1)
    assert Image.of(Box(-1, 1, (8, 84, 3), np.float32)) == (8, 84, 3, None)
    for shape in ((7, 16, 3), (16, 7, 3), (85, 16, 3), (16, 85, 3), (16, 16, 5), (3, 16, 16), (16, 16), (768,)):
        assert Image.of(Box(0, 255, shape, np.uint8)) is None
    assert Image.of(Discrete(3)) is None


def written_out(trunk, strides, padding, k, net):
    """The same convolutions by modules of torch, of one network of one member."""
    layers = []
    for i, stride in enumerate(strides):
        kernel, bias = getattr(trunk, f"kernel{i}")[k, net], getattr(trunk, f"bias{i}")[k, net]
        conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2], stride, padding)
        conv.weight.data, conv.bias.data = kernel.data, bias.data
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers)


def features(x):
    """Of images [B, C, H, W]: all numbers, and the moments of each channel along rows and columns."""
    height, width = x.shape[2:]
    rows = sum(x[:, :, i].sum(2) * (2 * i / (height - 1) - 1 if height > 1 else -1) for i in range(height))
    columns = sum(x[:, :, :, j].sum(2) * (2 * j / (width - 1) - 1 if width > 1 else -1) for j in range(width))
    return torch.cat((x.flatten(1), rows, columns), 1)


@pytest.mark.parametrize(
    ("shape", "dtype", "strides", "padding", "size"),
    [
        ((16, 16, 3), np.uint8, (2, 2), 1, 32 * (4 * 4 + 2)),
        ((35, 9, 1), np.float32, (2, 2), 1, 32 * (9 * 3 + 2)),
        ((36, 84, 4), np.uint8, (4, 2, 1), 0, 64 * (1 * 7 + 2)),
    ],
)
def test_images_pass_convolutions_of_every_network_s_own(shape, dtype, strides, padding, size):
    image = Image.of(Box(0, 200, shape, dtype))
    policy = ActorCritic(3, int(np.prod(shape)), Discrete(5), hidden=8, image=image)
    policy.reset([np.random.default_rng(i) for i in range(3)])
    for parameter in policy.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    draw = np.random.default_rng(0)
    obs = torch.from_numpy(draw.integers(0, 201, (3, 6, *shape)).astype(dtype))
    flat = obs.flatten(2)
    params, value = policy(flat)
    assert params.shape == (3, 6, 5) and policy.trunk.size == size
    for k in range(3):
        outputs = []
        for net, head in enumerate(("policy", "value")):
            seen = obs[k].permute(0, 3, 1, 2).float() / (200 if dtype == np.uint8 else 1)
            x = features(written_out(policy.trunk, strides, padding, k, net)(seen))
            x = linear(x, policy.weight1[k, net].T, policy.bias1[k, net, 0]).tanh()
            x = linear(x, policy.weight2[k, net].T, policy.bias2[k, net, 0]).tanh()
            weight, bias = getattr(policy, f"{head}_weight")[k], getattr(policy, f"{head}_bias")[k, 0]
            outputs.append(linear(x, weight.T, bias))
        torch.testing.assert_close(params[k], outputs[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(value[k], outputs[1][:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(policy.params(flat), params)
    torch.testing.assert_close(policy.value(flat), value)


@pytest.mark.parametrize("space", [Discrete(5), Box(-1, 1, (2,))])
@pytest.mark.parametrize("members", [[2], [2] * 5, [1, 0, 2] * 7, [3] * 30 + [0] * 11 + [1, 3], [0, 1, 2, 3] * 50])
@pytest.mark.parametrize("few", [0, 10**6])
def test_only_the_members_that_are_asked_are_evaluated(space, members, few, monkeypatch):
    policy = ActorCritic(4, 4, space, hidden=8, log_std=-0.5)
    for parameter in policy.parameters():
        parameter.data.normal_()
    S, member, rows = len(members), torch.tensor(members), []
    obs = torch.randn(S, 4)
    each = obs.expand(4, -1, -1)
    wanted = policy.params(each)[member, torch.arange(S)], policy.value(each)[member, torch.arange(S)]
    layers = networks.hidden_layers
    monkeypatch.setattr("mlsh.models.hidden_layers", lambda x, *p: rows.append(len(x) * x.shape[1]) or layers(x, *p))
    monkeypatch.setattr("mlsh.models.FEW", few)
    params_of = policy.params_of(member)
    for _ in range(2):
        torch.testing.assert_close(params_of(obs), wanted[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(policy.values_of(member, obs), wanted[1], rtol=1e-4, atol=1e-4)
    assert len(rows) == 3 and all(row == 4 * S if few else row <= 1.25 * S for row in rows)
    assert policy.values_of(member[:0], obs[:0]).shape == (0,)


def test_where_nothing_is_learned_images_are_looked_at_in_parts(monkeypatch):
    policy = ActorCritic(2, 192, Discrete(3), image=Image(8, 8, 3, None))
    policy.reset([np.random.default_rng(i) for i in range(2)])
    obs, sizes = torch.randn(2, 7, 192), []
    whole = policy(obs)
    features = policy.trunk._features
    monkeypatch.setattr("mlsh.networks.NUMBERS_AT_ONCE", 3 * 2 * 192 + 1)
    monkeypatch.setattr(policy.trunk, "_features", lambda x, which: sizes.append(x.shape[1]) or features(x, which))
    with torch.no_grad():
        for a, b in zip(policy(obs), whole, strict=True):
            torch.testing.assert_close(a, b)
        assert policy.value(obs[:, :0]).shape == (2, 0)
    assert sizes == [3, 3, 1, 0]


def test_members_with_trunks_are_reset_copied_and_joined():
    def policy(n):
        policy = ActorCritic(n, 64, Discrete(3), image=Image(8, 8, 1, None))
        policy.reset([np.random.default_rng(i) for i in range(n)])
        return policy

    three, two = policy(3), policy(2)
    for a, b in zip(three.parameters(), two.parameters(), strict=True):
        assert torch.equal(a[:2], b)
    kernel = three.trunk.kernel1[0, 1].flatten(1)
    torch.testing.assert_close(kernel @ kernel.T, 2 * torch.eye(32))  # orthogonal, gain √2
    assert not torch.equal(kernel, three.trunk.kernel1[0, 0].flatten(1)) and not three.trunk.bias0.any()
    obs = torch.randn(1, 4, 64)
    joined = two.concatenated([three.copies_of([2]).state_dict(), two.state_dict()])
    torch.testing.assert_close(
        joined.params(obs.expand(3, -1, -1)), three.params(obs.expand(3, -1, -1))[[2, 0, 1]], rtol=1e-5, atol=1e-6
    )


def test_an_agent_of_images_convolves_and_leaves_integers_to_the_trunk():
    env = make_env(Config(env="MovementBanditsConv-v0"), 1)
    agent = Hierarchy.build(Config(), env)
    assert agent.master.trunk.size == agent.sub_policies.trunk.size == 576
    assert not agent.normaliser.enabled  # though normalise is on
    agent.normaliser.update(torch.ones(5, 768, dtype=torch.uint8))
    obs = torch.ones(2, 768, dtype=torch.uint8)
    assert agent.normaliser(obs) is obs and not agent.normaliser.count
    agent = Hierarchy.build(Config(convolve=False), env)
    assert agent.master.trunk is None and agent.master.weight1.shape[2] == 768 and agent.normaliser.enabled
    assert agent.master.value(obs.expand(1, -1, -1)).shape == (1, 2)  # integers, if nothing has normalised them
    env.single_observation_space = Box(0, 1, (16, 16, 3), np.float32)
    assert Hierarchy.build(Config(), env).normaliser.enabled
    assert not len(Hierarchy.build(Config(normalise=False), env).normaliser.mean)
