import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from mlsh import minibatches
from mlsh.minibatches import MemberRows, MinibatchLayout, rows_of_members
from mlsh.models import ActorCritic
from mlsh.optim import Adam
from mlsh.ppo import (
    Batch,
    PPOSettings,
    Samples,
    figure_sums,
    figures_of,
    gae,
    gradients,
    normalise_advantages,
    sum_by_member,
    surrogate,
    update,
)

SETTINGS = PPOSettings(minibatches=4, epochs=5, clip=0.2, value_coef=0.5, entropy_coef=0.01)


def rngs(n, seed=0):
    return [np.random.default_rng((seed, g)) for g in range(n)]


def batch(policy, members, groups=None, seed=0):
    """Samples drawn from `policy` itself, with random advantages and targets."""
    torch.manual_seed(seed)
    members = torch.as_tensor(members)
    obs = torch.randn(len(members), 3)
    with torch.no_grad():
        params = policy.params(obs.expand(policy.n, -1, -1))[members, torch.arange(len(members))]
        distribution = policy.distribution(params)
        action = distribution.sample()
    numbers = torch.randn(3, len(members))
    groups = torch.zeros_like(members) if groups is None else torch.as_tensor(groups)
    return Batch(obs, action, distribution.log_prob(action), *numbers, members, groups)


def actor_critic(n, space=None, **more):
    policy = ActorCritic(n, 3, space or Discrete(4), hidden=8, **more)
    policy.reset(rngs(n))
    return policy


def test_gae_by_hand():
    reward = torch.tensor([[1.0], [2.0], [3.0]])
    value = torch.tensor([[0.5], [1.0], [2.0], [4.0]])
    goes_on = torch.ones(3, 1)
    # δ = r + 0.5 V' − V: 1, 2, 3; A_2 = 3, A_1 = 2 + 0.25 · 3, A_0 = 1 + 0.25 · 2.75
    expected = torch.tensor([[1.6875], [2.75], [3.0]])
    torch.testing.assert_close(gae(reward, value[:-1], value[1:], goes_on, 0.5, 0.5), expected)


def test_gae_stops_at_a_termination_and_bootstraps_at_a_time_limit():
    reward = torch.tensor([[1.0, 1.0], [2.0, 2.0], [9.0, 3.0]])
    value = torch.tensor([[0.5, 0.5], [1.0, 1.0], [7.0, 2.0], [7.0, 4.0]])
    goes_on = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    cut = gae(reward, value[:-1], value[1:], goes_on, 0.5, 0.5)
    # truncated instead: δ_1 = 2 + 0.5 · 7 − 1, and nothing from later
    torch.testing.assert_close(cut[:2, 0], torch.tensor([1 + 0.25 * 4.5, 4.5]))
    advantage = gae(reward, value[:-1], value[1:] * goes_on, goes_on, 0.5, 0.5)
    # episode 0 ends with its second step: δ_1 = 2 − 1, δ_0 = 1 + 0.5 · 1 − 0.5
    torch.testing.assert_close(advantage[:2, 0], torch.tensor([1.25, 1.0]))
    torch.testing.assert_close(advantage[:, 1], torch.tensor([1.6875, 2.75, 3.0]))


@pytest.mark.parametrize(("target_kl", "epochs"), [(0.0, 5), (1e9, 5), (1e-9, 1)])
def test_updates_end_with_the_epoch_that_passes_the_target(target_kl, epochs):
    """The first minibatch sees no divergence, the last of the first epoch more than 1e-9."""
    policy = actor_critic(2)
    data, optimizer = batch(policy, [0, 1] * 20), Adam(policy, 1e-2)
    update(policy, optimizer, data, rngs(1), replace(SETTINGS, target_kl=target_kl))
    assert {int(state["step"]) for state in optimizer.state.values()} == {4 * epochs}


def test_each_member_ends_by_its_own_divergence():
    policy = actor_critic(2)
    data, optimizer = batch(policy, [0, 1] * 20), Adam(policy, 1e-2, per_member=True)
    equal = torch.where(data.member == 0, 1.0, data.advantage)  # normalised they are 0: nothing to learn
    data = data._replace(advantage=equal)
    update(policy, optimizer, data, rngs(1), replace(SETTINGS, value_coef=0, entropy_coef=0, target_kl=1e-5))
    assert [{int(state["step"]) for _, state in optimizer.member_state(k)} for k in (0, 1)] == [{20}, {4}]


@pytest.mark.parametrize(("size", "shares", "split"), [(90, [0.25] * 4, 2), (400, [0.04, 0.9, 0.03, 0.03], 5)])
def test_some_members_learn_what_they_would_among_all(size, shares, split):
    """Members 1 and 2 of four, with their own samples and the labels of all: weights, moments, figures."""
    policies = [actor_critic(4) for _ in range(2)]
    both = [Adam(policy, 1e-2, per_member=True) for policy in policies]
    draw, some, settings = np.random.default_rng(0), range(1, 3), replace(SETTINGS, minibatches=3, epochs=2)
    data = batch(policies[0], draw.choice(4, size, p=shares), draw.integers(2, size=size))
    whole = update(policies[0], both[0], data, rngs(2), settings)
    before = [p.clone() for p in policies[1].parameters()]
    own = (data.member > 0) & (data.member < 3)
    mine = Batch(*(None if x is None else x[own] for x in data))
    part = policies[1].view_of(some)
    rows = MemberRows(MinibatchLayout(data.member.numpy(), data.group.numpy(), 4, 3), data.member.numpy(), some)
    assert len(rows.member) == split
    adam = both[1].for_members(part, some)
    stats = update(part, adam, mine._replace(member=mine.member - 1), rngs(2), settings, rows)
    for name, x in stats.items():
        torch.testing.assert_close(x, whole[name][1:3], rtol=1e-4, atol=1e-5)
    for theirs, ours, old in zip(policies[0].parameters(), policies[1].parameters(), before, strict=True):
        torch.testing.assert_close(ours[1:3], theirs[1:3], rtol=1e-4, atol=1e-5)
        assert not torch.equal(ours[1:3], old[1:3]) and torch.equal(ours[[0, 3]], old[[0, 3]])
    third = actor_critic(4)
    copy = Adam(third, 1e-2, per_member=True)
    copy.load_member(2, both[1].member_state(2))
    for (values, state), (other, expected) in zip(copy.member_state(2), both[0].member_state(2), strict=True):
        torch.testing.assert_close(values, other, rtol=1e-4, atol=1e-5)
        for name in expected:
            torch.testing.assert_close(state[name], expected[name], rtol=1e-3, atol=1e-5)
    assert not both[1].member_state(0)[0][1] and int(copy.member_state(2)[0][1]["step"]) == 6
    with torch.no_grad():
        part.weight1[1].fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="policy 2 is not"):
        adam.check_finite("policy")


@pytest.mark.parametrize(("counts", "rows"), [([33, 33, 34], 3), ([300, 16, 16, 16, 16, 16], 10)])
def test_minibatches_hold_every_sample_once_an_epoch_in_a_row_of_its_member(counts, rows):
    draw, n = np.random.default_rng(1), len(counts)
    member = draw.permutation(np.arange(n).repeat(counts))
    group = draw.integers(2, size=len(member))
    shuffled, generators = MinibatchLayout(member, group, n, minibatches=4), rngs(2)
    weight, epochs = shuffled.mean_weights, [shuffled.shuffle(generators) for _ in range(5)]
    assert len(shuffled.member) == rows
    for index in epochs:
        assert index.shape == weight.shape and index.shape[:2] == (4, rows)
        assert sorted(index[weight > 0]) == list(range(len(member)))
        for k in range(n):
            own = shuffled.member == k
            assert (member[index[:, own]] == k).all()  # padding too
            np.testing.assert_allclose(weight[:, own].sum((1, 2)), 1, rtol=1e-5)
            for g in range(2):  # a cell's samples lie evenly over the parts
                counted = ((group[index[:, own]] == g) & (weight[:, own] > 0)).sum((1, 2))
                assert counted.max() - counted.min() <= 1
    assert (epochs[0] != epochs[1]).any()


def test_rows_are_split_where_most_places_would_be_empty():
    for counts, rows, width in (
        ([[5, 5, 5, 5]], [1, 1, 1, 1], 5),
        ([[40, 1, 1, 1, 0]], [5, 1, 1, 1, 0], 9),  # 5 · 40 places, or 8 · 9 and 8 copies at 5 each
        ([[20, 1, 1, 1, 1]], [1, 1, 1, 1, 1], 20),  # 5 · 20 places, or 8 · 5 and 8 copies at 5 each
        ([[40, 1, 1, 1, 1], [1, 40, 1, 1, 1]], [1, 1, 1, 1, 1], 40),  # 5 · 40, or 13 · 9 and 13 · 5
        ([[100, 1]], [1, 1], 100),
        ([[100, 0]], [2, 0], 50),
    ):
        found, found_width = rows_of_members(np.array(counts))
        assert (found.tolist(), found_width) == (rows, width)


@pytest.mark.parametrize("space", [Discrete(4), Box(-1, 1, (2,))])
def test_split_rows_teach_the_same(space, monkeypatch):
    """Member 0 has most samples, and member 5 none. Some members end early, by their divergence."""
    members = [0] * 200 + [1, 2, 3, 4] * 5
    settings = replace(SETTINGS, minibatches=3, anchor_coef=0.1, target_kl=1e-4)
    learned, rows = [], []
    for saving in (minibatches.SAVING, math.inf):
        monkeypatch.setattr(minibatches, "SAVING", saving)
        rows.append(len(MinibatchLayout(np.array(members), np.zeros(220, int), 6, 3).member))
        policy = actor_critic(6, space)
        data = batch(policy, members)
        data = data._replace(importance=torch.rand(len(members)), anchor=torch.randn(len(members), 4))
        optimizer = Adam(policy, 1e-3, per_member=True)
        stats = update(policy, optimizer, data, rngs(1), settings)
        steps = [
            max((int(state["step"]) for _, state in optimizer.member_state(k) if state), default=0) for k in range(6)
        ]
        learned.append((dict(policy.named_parameters()), stats, steps))
    assert rows == [10, 6]
    (split, split_stats, split_steps), (whole, stats, steps) = learned
    assert split_steps == steps and len(set(steps)) > 2
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(split_stats, stats, rtol=1e-3, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(("counts", "rows"), [([20], 1), ([300, 16, 16, 16, 16, 16], 10)])
def test_minibatches_of_a_group_do_not_depend_on_the_others(counts, rows):
    member = np.arange(len(counts)).repeat(counts)
    first = range(len(member))  # the samples of the first group
    alone = MinibatchLayout(member, 0 * member, len(counts), 3)
    both = MinibatchLayout(np.tile(member, 2), np.repeat([0, 1], len(member)), len(counts), 3)
    assert len(both.member) == rows
    two, one = rngs(2), rngs(1)
    for _ in range(2):
        epochs = (both, both.shuffle(two)), (alone, alone.shuffle(one))
        for i in range(3):
            together, single = (set(index[i][layout.mean_weights[i] > 0]) for layout, index in epochs)
            assert single == together & set(first)


def test_normalise_within_each_cell():
    advantage = torch.tensor([1.0, 3.0, 10.0, 30.0, 5.0])
    out = normalise_advantages(advantage, torch.tensor([0, 0, 2, 2, 1]), 4)
    torch.testing.assert_close(out, torch.tensor([-1.0, 1.0, -1.0, 1.0, 0.0]))


@pytest.mark.parametrize("space", [Discrete(4), Box(-1, 1, (2,))])
def test_update_is_ppo_of_each_member_alone(space):
    """The stacked policy against one-network policies, the textbook loss and Adam, one full-batch step."""
    policy = actor_critic(2, space)
    policy.policy_weight.data *= 100  # far from uniform, so that entropy has a gradient
    data = batch(policy, [0] * 6 + [1] * 9)
    data = data._replace(log_prob=data.log_prob + torch.linspace(-0.5, 0.5, 15))  # some ratios beyond the clip
    expected = []
    for k in range(2):
        single = policy.copies_of([k])
        mine = data.member == k
        advantage = data.advantage[mine]
        advantage = (advantage - advantage.mean()) / advantage.std(correction=0)
        optimizer = torch.optim.Adam(single.parameters(), 0.01, eps=1e-5)
        params, value = single(data.obs[None, mine])
        new = single.distribution(params)
        ratio = (new.log_prob(data.action[mine]) - data.log_prob[mine]).exp()
        policy_loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
        loss = policy_loss + 0.5 * (value - data.value_target[mine]).square().mean() - 0.3 * new.entropy().mean()
        loss.backward()
        optimizer.step()
        expected.append(single)
    optimizer = Adam(policy, 0.01)
    update(policy, optimizer, data, rngs(1), replace(SETTINGS, minibatches=1, epochs=1, entropy_coef=0.3))
    for k in range(2):
        for name, tensor in expected[k].state_dict().items():
            torch.testing.assert_close(policy.state_dict()[name][k], tensor[0], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("members", [[0] * 20, [0] * 20 + [1]], ids=["never chosen", "chosen once"])
def test_a_member_with_too_few_samples_is_left_as_it_is(members):
    policy = actor_critic(2)
    optimizer = Adam(policy, 0.01, per_member=True)
    update(policy, optimizer, batch(policy, [0, 1] * 10), rngs(1), replace(SETTINGS, minibatches=3, epochs=2))

    def tensors(k):
        rows = optimizer.param_groups[0]["params"][k::2]  # of a parameter the two members one after the other
        moments = [optimizer.state[row][key] for row in rows for key in ("exp_avg", "exp_avg_sq", "step")]
        return [t.detach().clone() for t in [*(p[k] for p in policy.parameters()), *moments]]

    before = tensors(0), tensors(1)
    stats = update(
        policy, optimizer, batch(policy, members, seed=1), rngs(1), replace(SETTINGS, minibatches=3, epochs=2)
    )
    assert all(torch.equal(a, b) for a, b in zip(before[1], tensors(1), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before[0], tensors(0), strict=True))
    assert all(x[0].isfinite() and x[1].isnan() for x in stats.values())


def test_a_member_rests_in_minibatches_without_its_samples():
    """Two samples over eight minibatches: two Adam steps move the member, momentum in the other six does not."""
    policy = actor_critic(2)
    settings = replace(SETTINGS, minibatches=8, epochs=1, entropy_coef=0.0)
    data = batch(policy, [0] * 40 + [1] * 2)
    stats = update(policy, Adam(policy, 0.0), data, rngs(1), settings)
    assert stats["entropy"][1].item() == pytest.approx(np.log(4), abs=1e-2)  # not diluted by empty minibatches
    before = policy.policy_bias[1].detach().clone()
    update(policy, Adam(policy, 0.01, per_member=True), data, rngs(1), settings)
    assert 0 < (policy.policy_bias[1] - before).abs().max() <= 2 * 0.01 * 1.01


def test_a_member_that_begins_late_takes_no_larger_steps():
    """Adam's first step is the learning rate, of each member; with a count for all it would be three times that."""
    policy = actor_critic(2)
    optimizer = Adam(policy, 0.01, per_member=True)
    settings = replace(SETTINGS, minibatches=1, epochs=100, entropy_coef=0.0)
    update(policy, optimizer, batch(policy, [0] * 20), rngs(1), settings)
    before = [p.detach().clone() for p in policy.parameters()]
    update(policy, optimizer, batch(policy, [0, 1] * 20), rngs(1), replace(settings, epochs=1))
    moved = max((p - b)[1].abs().max() for p, b in zip(policy.parameters(), before, strict=True))
    assert 0.005 < moved <= 0.01 * 1.0001
    steps = [{int(optimizer.state[p]["step"]) for p in optimizer.param_groups[0]["params"][k::2]} for k in (0, 1)]
    assert steps == [{101}, {1}]


def test_members_apart_learn_as_members_together():
    one, two = actor_critic(3), actor_critic(3)
    data = batch(one, [0, 1, 2] * 20)
    for policy, apart in ((one, False), (two, True)):
        update(policy, Adam(policy, 0.01, apart), data, rngs(1), replace(SETTINGS, minibatches=3, epochs=4))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_bandit_is_learned():
    """Two members, two arms, each member paid for another arm."""
    policy = ActorCritic(2, 3, Discrete(2), hidden=8)
    policy.reset(rngs(2))
    optimizer = Adam(policy, 0.01, per_member=True)
    for i in range(30):
        data = batch(policy, [0, 1] * 50, seed=i)
        paid = (data.action == data.member).float()
        data = data._replace(advantage=paid - 0.5, value_target=paid)
        stats = update(policy, optimizer, data, rngs(1, i), replace(SETTINGS, minibatches=2, entropy_coef=0.0))
    obs = torch.randn(2, 50, 3)
    chosen = policy.params(obs).softmax(-1).mean(1)
    assert chosen[0, 0] > 0.95 and chosen[1, 1] > 0.95
    assert stats["value_loss"].max() < 0.1


@pytest.mark.parametrize(
    ("log_ratios", "dual_clip", "learns"), [((1, -1), 0, False), ((1, 1.2), 0, True), ((1, 1.2), 3, False)]
)
def test_a_ratio_beyond_the_clip_gives_the_policy_no_gradient(log_ratios, dual_clip, learns):
    """Of a good action upwards, of a bad one downwards, and with a dual clip upwards, too."""
    policy = actor_critic(1)
    data = batch(policy, [0, 0])._replace(advantage=torch.tensor([1.0, -1.0]))
    data = data._replace(log_prob=data.log_prob - torch.tensor(log_ratios))
    weights = policy.policy_weight.detach().clone(), policy.value_weight.detach().clone()
    settings = replace(SETTINGS, minibatches=1, epochs=1, dual_clip=dual_clip, entropy_coef=0)
    stats = update(policy, Adam(policy, 0.1), data, rngs(1), settings)
    assert torch.equal(policy.policy_weight, weights[0]) != learns
    assert not torch.equal(policy.value_weight, weights[1])
    assert stats["clip_fraction"] == 1


@pytest.mark.parametrize(
    ("dual_clip", "advantage", "log_ratio", "epsilon", "loss", "gradient"),
    [
        (3.0, -2.0, 1.0, 0.2, 2 * math.e, 2 * math.e),  # −rA, with its gradient
        (3.0, -2.0, 1.2, 0.2, 6.0, 0.0),  # −3A, without
        (3.0, -2.0, 500.0, 0.2, 6.0, 0.0),
        (3.0, 2.0, 1.2, 0.2, -2.4, 0.0),  # −(1 + ε)A
        (3.0, 2.0, 1.2, 3.0, -2 * math.exp(1.2), -2 * math.exp(1.2)),  # −rA, as 1 + ε is more than 3
        (0.0, -2.0, 1.2, 0.2, 2 * math.exp(1.2), 2 * math.exp(1.2)),  # no limit
        (0.0, -2.0, 500.0, 0.2, 2 * math.exp(20), 0.0),  # but what exp can bear
    ],
)
def test_a_bad_action_beyond_the_dual_clip_teaches_nothing(dual_clip, advantage, log_ratio, epsilon, loss, gradient):
    logits = torch.tensor([[0.0, 0.0]], requires_grad=True)
    new, old = torch.distributions.Categorical(logits=logits), torch.tensor([0.5]).log() - log_ratio
    samples = Samples(None, torch.tensor([0]), old, torch.tensor([advantage]), 0.0)
    objective = surrogate(new, torch.tensor([0.0]), samples, epsilon, dual_clip)
    objective.policy_loss.sum().backward()
    assert objective.policy_loss.item() == pytest.approx(loss, rel=1e-5)
    assert logits.grad[0].tolist() == pytest.approx([gradient / 2, -gradient / 2], rel=1e-5)  # d log p = ½, −½
    reported = min(log_ratio, 20)
    assert objective.kl.item() == pytest.approx(math.exp(reported) - 1 - reported, rel=1e-4)


def test_explained_variance_by_hand():
    target = torch.tensor([[1.0, 3, 5, 99], [7, 7, 7, 0], [1e4, 1e4 + 2, 1e4, 1e4 + 2]])
    value = torch.tensor([[0.0, 2, 6, -5], [7, 8, 7, 0], [1e4, 1e4 + 2, 1e4, 1e4 + 2]])
    weight = torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0], [1 / 3, 1 / 3, 1 / 3, 0], [0.25] * 4])
    by_hand = [1 - (8 / 9) / (8 / 3), math.nan, 1]  # errors 1, 1, -1; targets that are the same; values that are right
    zeros = torch.zeros(3, 4)
    new = torch.distributions.Normal(zeros, 1.0)

    samples = Samples(None, zeros, new.log_prob(zeros), zeros, target)
    explained = figures_of(figure_sums(new, value, samples, weight.double(), 0.2))["explained_variance"]
    torch.testing.assert_close(explained, torch.tensor(by_hand), equal_nan=True)


def test_split_rows_keep_what_is_infinite_to_its_member():
    rows = torch.eye(3)[[0, 0, 1, 2]]
    sums = sum_by_member(torch.tensor([[1.0, 2.0, math.inf, math.nan]] * 2), rows)
    torch.testing.assert_close(sums, torch.tensor([[3.0, math.inf, math.nan]] * 2), equal_nan=True)


def test_values_that_are_all_the_same_explain_nothing():
    """In float32, the variance of targets of 1.7 would not be zero."""
    policy = actor_critic(1)
    data = batch(policy, [0] * 40)._replace(value_target=torch.full((40,), 1.7))
    stats = update(policy, Adam(policy, 0.0), data, rngs(1), SETTINGS)
    assert stats["explained_variance"].isnan().all() and stats["value_loss"].isfinite().all()


def test_stats_by_hand():
    policy = actor_critic(1)
    data = batch(policy, [0] * 4)
    stats = update(policy, Adam(policy, 0.0), data, rngs(1), replace(SETTINGS, minibatches=2, epochs=1))
    assert stats["kl"] == pytest.approx(0, abs=1e-6) and stats["clip_fraction"] == 0
    assert stats["entropy"] == pytest.approx(np.log(4), abs=1e-2)
    value = policy.value(data.obs[None])[0]
    assert stats["value_loss"].item() == pytest.approx((value - data.value_target).square().mean().item(), rel=1e-4)
    explained = 1 - (data.value_target - value).var(correction=0) / data.value_target.var(correction=0)
    assert stats["explained_variance"].item() == pytest.approx(explained.item(), rel=1e-4)


def test_a_sample_that_was_all_but_impossible_gives_no_nan():
    """As a random decision is that a saturated master would never make."""
    policy = actor_critic(1, Discrete(4))
    data = batch(policy, [0] * 8)
    data.log_prob[0], data.advantage[0] = -200.0, -10.0
    settings = replace(SETTINGS, minibatches=2, epochs=3, entropy_coef=0.0)
    update(policy, Adam(policy, 1e-2), data, rngs(1), settings)
    assert all(p.isfinite().all() for p in policy.parameters())


def test_a_sample_that_was_all_but_impossible_ends_no_other_members_update():
    """A member that has no sample in a minibatch repeats its own there, which weigh nothing."""
    policy = actor_critic(2, Discrete(4))
    data, optimizer = batch(policy, [0] * 8 + [1] * 2), Adam(policy, 1e-4, per_member=True)
    data.log_prob[0] = -200.0
    update(policy, optimizer, data, rngs(1), replace(SETTINGS, epochs=3, target_kl=1.0))
    assert [int(optimizer.member_state(k)[0][1]["step"]) for k in (0, 1)] == [4, 6]


def test_a_loss_that_is_infinite_is_noticed():
    """The weights stay finite, but Adam would never move them again."""
    policy = actor_critic(2)
    samples = batch(policy, [0, 0, 1, 1])
    samples.value_target[2:] = 1e25
    with pytest.raises(FloatingPointError, match="1 is not finite"):
        update(policy, Adam(policy, 1e-3), samples, rngs(1), replace(SETTINGS, minibatches=1, epochs=1))
    assert all(p.isfinite().all() for p in policy.parameters())


def test_weights_only_compare_the_samples_of_a_member():
    def learned(weight):
        policy = actor_critic(2)
        samples = batch(policy, [0, 0, 0, 1, 1])._replace(importance=None if weight is None else torch.tensor(weight))
        update(policy, Adam(policy, 1e-2), samples, rngs(1), replace(SETTINGS, minibatches=1, epochs=2))
        return policy.policy_weight.detach()

    torch.testing.assert_close(learned([3.0] * 3 + [1e-30] * 2), learned(None))  # whatever they are, if they are equal
    torch.testing.assert_close(learned([1.0, 2.0, 3.0, 1.0, 1.0]), learned([5.0, 10.0, 15.0, 1.0, 1.0]))
    one, other = learned([1.0, 2.0, 3.0, 1.0, 1.0]), learned(None)
    assert torch.equal(one[1], other[1]) and not torch.equal(one[0], other[0])
    policy = actor_critic(1)
    nothing = batch(policy, [0] * 100)._replace(importance=torch.zeros(100))
    update(policy, Adam(policy, 1e-2), nothing, rngs(1), replace(SETTINGS, minibatches=1, epochs=2))
    assert all(p.isfinite().all() for p in policy.parameters())


def test_a_sample_without_weight_teaches_nothing():
    policy = actor_critic(1)
    samples, index = batch(policy, [0, 0, 0]), torch.tensor([[0, 1, 2]])
    weight = torch.full((1, 3), 1 / 3)
    weighted = samples._replace(importance=torch.tensor([1.5, 1.5, 0.0]))
    told, _ = gradients(policy, weighted, index, weight, None, 0.2, 0.0, 0.5, 0.01)
    of_two, _ = gradients(policy, samples, index[:, :2], torch.full((1, 2), 1 / 2), None, 0.2, 0.0, 0.5, 0.01)
    torch.testing.assert_close(told, of_two)


def test_the_gradient_towards_an_anchor_by_hand():
    index, weights = torch.arange(6)[None], torch.full((1, 6), 1 / 6)
    for space in (Discrete(4), Box(-1, 1, (2,))):
        policy = actor_critic(1, space)
        anchored = batch(policy, [0] * 6)
        anchored = anchored._replace(advantage=torch.zeros(6), anchor=torch.randn(6, 4))
        found, _ = gradients(policy, anchored, index, weights, None, 0.2, 0.0, 0.0, 0.0, 3.0)
        of_bias = dict(zip([name for name, _ in policy.named_parameters()], found, strict=True))["policy_bias"]
        params = policy.params(anchored.obs[None])[0]
        if isinstance(space, Discrete):  # d KL / d logit = p (log p/q − KL)
            p = params.softmax(-1)
            log_ratio = (p / anchored.anchor.softmax(-1)).log()
            wanted = p * (log_ratio - (p * log_ratio).sum(-1, keepdim=True))
        else:  # d KL / d mean = (mean − that of the anchor) / σ², where σ is the anchor's
            wanted = (params[:, :2] - anchored.anchor[:, :2]) / anchored.anchor[:, 2:].exp() ** 2
        torch.testing.assert_close(of_bias[0, 0], 3 * wanted.mean(0))
