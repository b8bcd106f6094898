import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from mlsh.baselines import rl2
from mlsh.ppo import gae
from mlsh.sampling import Streams
from test_adapt import Guess
from test_rollout import Ladder

SETTINGS = dict(episodes=2, T=3, gamma=0.9, lam=0.8, reward_scale=0.5)


def policy_for(env, hidden=8):
    policy = rl2.build(rl2.RL2Config(hidden=hidden), env)
    policy.reset(np.random.default_rng(0))
    return policy


def play(env, policy, **more):
    return rl2.play(env, policy, np.random.default_rng(1), **SETTINGS | more)


@pytest.mark.parametrize("space", [Discrete(3), Box(-1, 1, (2,))])
def test_a_trial_by_hand(space):
    env = Ladder([99, 99], space)
    policy = policy_for(env)
    trials = play(env, policy)
    assert trials.steps == 12 and trials.episode_return.tolist() == [[6, 6], [6, 6]]
    # inputs: observation (t, e), last action, last reward scaled, whether an episode begins; across episodes too
    assert trials.obs[:, 0, 0].tolist() == [0, 1, 2, 0, 1, 2]
    last = torch.nn.functional.one_hot(trials.action, 3) if policy.discrete else trials.action
    assert torch.equal(trials.obs[1:, :, 2:-2], last[:-1].float()) and (trials.obs[0, :, 2:-2] == 0).all()
    assert trials.obs[:, 0, -2].tolist() == [0, 0.5, 1, 1.5, 0.5, 1]
    assert trials.obs[:, 0, -1].tolist() == [1, 0, 0, 1, 0, 0]
    # one pass through time gives what step by step gave: the hidden state lives as long as the trial
    params, value, _ = policy(trials.obs)
    torch.testing.assert_close(policy.distribution(params).log_prob(trials.action), trials.log_prob)
    reward = torch.tensor([1.0, 2, 3, 1, 2, 3])[:, None].expand(6, 2) / 2
    expected = gae(reward, value, torch.cat((value[1:], torch.zeros(1, 2))), torch.ones(6, 2), 0.9, 0.8)
    torch.testing.assert_close(trials.advantage, expected.detach())
    torch.testing.assert_close(trials.value_target, value.detach() + trials.advantage)
    assert (trials.weight == 1 / 12).all()


def test_what_comes_after_a_termination_weighs_nothing():
    env = Ladder([99, 2])
    trials = play(env, policy_for(env))
    assert trials.steps == 10 and trials.episode_return.tolist() == [[6, 3], [6, 3]]
    lived = torch.tensor([0, 1, 3, 4])  # as if the trial had these steps only
    value = (trials.value_target - trials.advantage)[lived, 1:]
    reward = torch.tensor([1.0, 2, 1, 2])[:, None] / 2
    expected = gae(reward, value, torch.cat((value[1:], torch.zeros(1, 1))), torch.ones(4, 1), 0.9, 0.8)
    torch.testing.assert_close(trials.advantage[lived, 1:], expected)
    assert (trials.weight[:, 1] > 0).tolist() == [True, True, False] * 2
    assert all(x.isfinite().all() for x in trials[:-1])


def test_an_episode_that_is_over_everywhere_is_not_played_on():
    env = Ladder([2, 1])
    trials = play(env, policy_for(env))
    assert len(trials.obs) == len(env.actions) == 2 * 2 and trials.steps == 2 * 3
    assert trials.episode_return.tolist() == [[3, 1], [3, 1]]


def test_a_sample_without_weight_moves_nothing():
    env = Ladder([99, 99])
    after = []
    for wrong in (0.0, 1e3):
        policy = policy_for(env)
        trials = play(env, policy)
        weight = trials.weight.clone()
        weight[3:] = 0
        trials = trials._replace(weight=weight / weight.sum())
        for field in (trials.advantage, trials.value_target):
            field[3:] += wrong
        optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
        ppo = dict(parts=2, epochs=2, epsilon=0.2, c1=0.5, c2=0.01)
        rl2.learn(policy, optimizer, trials, np.random.default_rng(0), **ppo)
        after.append([p.clone() for p in policy.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*after, strict=True))


def test_it_learns_to_find_the_action_that_pays():
    """One of three actions pays: a memoryless policy gets a third, one that tries and remembers nearly all."""
    cfg = rl2.RL2Config(N=60, T=6, episodes=2, lr=1e-2, reward_scale=1.0, hidden=16)
    env = Guess(60)
    env.set_task([0, 1, 2])
    policy = policy_for(env, 16)
    optimizer = torch.optim.Adam(policy.parameters(), cfg.lr)
    for i in range(40):
        (rng,) = Streams(0, [0])(i, "test")
        trials = rl2.play(env, policy, rng, **cfg.trial)
        rl2.learn(policy, optimizer, trials, rng, **cfg.ppo)
    first, second = trials.episode_return.mean(1) / cfg.T
    assert first > 0.6 and second > 0.9
