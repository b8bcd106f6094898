import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from mlsh.baselines import rl2
from mlsh.ppo import PPOSettings, gae
from mlsh.sampling import Streams
from test_meta_test import Guess
from test_rollout import Ladder

CFG = rl2.RL2Config(hidden=8, episodes=2, T=3, gamma=0.9, lam=0.8, reward_scale=0.5)


def policy_for(env, cfg=CFG):
    policy = cfg.build(env)
    policy.reset(np.random.default_rng(0))
    return policy


def play(env, policy, seed=1):
    return rl2.play_trials(env, policy, np.random.default_rng(seed), CFG)


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


def test_the_steps_of_a_trial_follow_each_other():
    """Slot 1 has episodes of two steps; its trial is padded at the end, with weight 0."""
    env = Ladder([99, 2])
    trials = play(env, policy_for(env))
    assert trials.steps == 10 and trials.episode_return.tolist() == [[6, 3], [6, 3]]
    assert (trials.weight[:, 1] > 0).tolist() == [True] * 4 + [False] * 2
    assert trials.obs[:4, 1, 0].tolist() == [0, 1, 0, 1]
    value = (trials.value_target - trials.advantage)[:4, 1:]
    reward = torch.tensor([1.0, 2, 1, 2])[:, None] / 2
    expected = gae(reward, value, torch.cat((value[1:], torch.zeros(1, 1))), torch.ones(4, 1), 0.9, 0.8)
    torch.testing.assert_close(trials.advantage[:4, 1:], expected)
    assert all(x.isfinite().all() for x in trials[:-1])


@pytest.mark.parametrize("space", [Discrete(3), Box(-1, 1, (2,))])
def test_a_trial_does_not_depend_on_how_long_the_other_slots_play(space):
    """Slot 1 ends after two steps; slot 0 plays on for one more, or not."""
    policy, found = policy_for(Ladder([99, 2], space)), []
    for lifetime in ([99, 2], [2, 2]):
        trials = play(Ladder(lifetime, space), policy)
        found.append([x[:4, 1] for x in trials[:5]])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_learning_sees_each_trial_as_it_was_played():
    """One pass through time over padded trials gives the log probabilities and values of playing step by step."""
    env = Ladder([99, 2, 1])
    policy = policy_for(env)
    trials = play(env, policy)
    params, value, _ = policy(trials.obs)
    real = trials.weight > 0
    log_prob = policy.distribution(params).log_prob(trials.action)
    torch.testing.assert_close(log_prob[real], trials.log_prob[real])
    torch.testing.assert_close(value[real], (trials.value_target - trials.advantage)[real])


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
        settings = PPOSettings(minibatches=2, epochs=2, entropy_coef=0.01)
        rl2.learn(policy, optimizer, trials, np.random.default_rng(0), settings)
        after.append([p.clone() for p in policy.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*after, strict=True))


def test_it_learns_to_find_the_action_that_pays():
    """One of three actions pays: a memoryless policy gets a third, one that tries and remembers nearly all."""
    cfg = rl2.RL2Config(N=60, T=6, episodes=2, lr=1e-2, reward_scale=1.0, hidden=16)
    env = Guess(60)
    env.set_task([0, 1, 2])
    policy = policy_for(env, cfg)
    optimizer = torch.optim.Adam(policy.parameters(), cfg.lr)
    for i in range(40):
        (rng,) = Streams(0, [0])(i, "test")
        trials = rl2.play_trials(env, policy, rng, cfg)
        rl2.learn(policy, optimizer, trials, rng, cfg.ppo)
    first, second = trials.episode_return.mean(1) / cfg.T
    assert first > 0.6 and second > 0.9
