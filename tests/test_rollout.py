import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.envs.base import VectorTasks
from mlsh.models import Hierarchy
from mlsh.ppo import gae
from mlsh.rollout import collect
from mlsh.sampling import Streams


def always(*shape):
    return torch.ones(shape), torch.ones(shape)


SETTINGS = dict(T=7, high_len=3, gamma=0.9, lam=0.8)


class Ladder(VectorTasks):
    """Reward t + 1 at step t; episode e ends after its lifetime[e] steps, then all is NaN; observes (t, e)."""

    train_tasks = [0]

    def __init__(self, lifetime, space=None):
        self.single_observation_space = Box(-9, 99, (2,), np.float32)
        self.single_action_space = space or Discrete(3)
        super().__init__(len(lifetime), None, None, "cpu")
        self.lifetime = torch.tensor(lifetime)
        self.actions = []

    def _reset(self):
        return self._observation()

    def _observation(self):
        return torch.stack((torch.full((self.num_envs,), float(self._elapsed)), torch.arange(self.num_envs)), 1)

    def _step(self, actions):
        self.actions.append(actions)
        reward = torch.full((self.num_envs,), float(self._elapsed))
        reward[self._elapsed > self.lifetime] = torch.nan
        observation = self._observation()
        observation[self._elapsed > self.lifetime] = torch.nan
        return observation, reward, self._elapsed >= self.lifetime, {}


def agent_for(env, groups, num_low=2, seed=0):
    cfg = Config(groups=groups, num_low=num_low, hidden=8, normalise=False)
    agent = Hierarchy.build(cfg, env)
    agent.master.reset(Streams(seed, range(groups))(0, "master"))
    agent.subs.reset(Streams(seed, range(num_low))(0, "subs"))
    return agent


@pytest.mark.parametrize("space", [Discrete(3), Box(-1, 1, (2,))])
def test_two_timescales_by_hand(space):
    """T = 7 is no multiple of the master's period 3: its last transition has one step."""
    env = Ladder([99, 99, 99, 99], space)
    agent = agent_for(env, groups=2)
    out = collect(env, agent, Streams(1, range(2))(2, "x"), **SETTINGS, reward_scale=0.5)
    master, low = out.master, out.low
    assert out.outcome.steps == 28 and out.outcome.episode_return.tolist() == [[28, 28], [28, 28]]
    # decisions at t = 0, 3, 6 in every episode, time-major
    assert master.obs[:, 0].tolist() == [0] * 4 + [3] * 4 + [6] * 4
    assert master.member.tolist() == master.group.tolist() == [0, 0, 1, 1] * 3
    macro = torch.tensor([6.0, 15.0, 7.0])[:, None].expand(3, 4) / 2  # 1+2+3, 4+5+6, 7, scaled
    at = torch.tensor([[t, e] for t in (0, 3, 6, 7) for e in range(4)], dtype=torch.float32)
    value = agent.master.value(at.expand(2, -1, -1))[[0, 0, 1, 1] * 4, range(16)].view(4, 4)
    advantage = gae(macro, value, *always(3, 4), 0.9, 0.8)
    torch.testing.assert_close(master.advantage.view(3, 4), advantage)
    torch.testing.assert_close(master.value_target, master.value + master.advantage)
    # the sub-policy a decision named acts for its three steps
    z = master.action.view(3, 4)
    assert low.member.view(7, 4).tolist() == z[[0, 0, 0, 1, 1, 1, 2]].tolist()
    assert torch.equal(low.action, torch.cat(env.actions))
    assert low.obs[:, 0].tolist() == [t for t in range(7) for _ in range(4)]
    # low-level values are those of the sub-policy then active, across switches, with a bootstrap at the end
    at = torch.tensor([[t, e] for t in range(8) for e in range(4)], dtype=torch.float32)
    members = low.member.view(7, 4)[[0, 1, 2, 3, 4, 5, 6, 6]].flatten()
    value = agent.subs.value(at.expand(2, -1, -1))[members, range(32)].view(8, 4)
    advantage = gae(torch.arange(1.0, 8)[:, None].expand(7, 4) / 2, value, *always(7, 4), 0.9, 0.8)
    torch.testing.assert_close(low.advantage.view(7, 4), advantage)
    share = (members[:28].view(7, 2, 2) == 0).float().mean((0, 2))
    torch.testing.assert_close(out.outcome.share[:, 0], share)


def test_without_bootstrap_the_limit_ends_the_episode_for_the_master_alone():
    env = Ladder([99] * 4)
    agent = agent_for(env, groups=2)
    with_it, without = (
        collect(env, agent, Streams(1, range(2))(2, "x"), **SETTINGS, bootstrap=b) for b in (True, False)
    )
    assert torch.equal(with_it.low.advantage, without.low.advantage)
    expected = gae(
        torch.tensor([6.0, 15.0, 7.0])[:, None].expand(3, 4),  # 1+2+3, 4+5+6, 7
        torch.cat((without.master.value.view(3, 4), torch.zeros(1, 4))),
        *always(3, 4),
        0.9,
        0.8,
    )
    torch.testing.assert_close(without.master.advantage.view(3, 4), expected)
    assert not torch.allclose(with_it.master.advantage.view(3, 4)[-1], expected[-1], atol=1e-4)


def test_the_environments_last_info_is_kept():
    env = Ladder([99] * 4)
    step = env._step
    env._step = lambda actions: (*step(actions)[:3], {"height": torch.arange(4.0) + env._elapsed})
    out = collect(env, agent_for(env, groups=2), Streams(1, range(2))(2, "x"), **SETTINGS)
    assert {name: x.tolist() for name, x in out.outcome.final.items()} == {"height": [[7, 8], [9, 10]]}


@pytest.mark.parametrize("space", [Discrete(3), Box(-1, 1, (2,))])
def test_without_sub_policies_the_masters_act_at_every_step(space):
    env = Ladder([99, 3, 99, 99], space)
    cfg = Config(groups=2, num_low=0, hidden=8)
    agent = Hierarchy.build(cfg, env)
    agent.master.reset(Streams(0, range(2))(0, "master"))
    out = collect(env, agent, Streams(1, range(2))(2, "x"), **SETTINGS | {"high_len": 1})
    assert out.low is None and out.outcome.share.shape == (2, 0) and out.outcome.steps == 24
    assert out.outcome.episode_return.tolist() == [[28, 6], [28, 28]]
    first = out.master.action[:4]
    assert torch.equal(first, env.actions[0])  # what the environment got is what is learned from
    at = torch.tensor([[0.0, e] for e in range(4)])
    params = agent.master.params(at.view(2, 2, 2)).view(4, -1)
    log_prob = agent.master.distribution(params).log_prob(first)
    torch.testing.assert_close(out.master.log_prob[:4], log_prob)
    assert out.master.member.tolist() == [0, 0, 1, 1] * 3 + [0, 1, 1] * 4


def test_log_probs_are_of_the_actions_taken():
    env = Ladder([99] * 4)
    agent = agent_for(env, groups=2)
    out = collect(env, agent, Streams(1, range(2))(2, "x"), **SETTINGS)
    for batch, policy in ((out.master, agent.master), (out.low, agent.subs)):
        params = policy.params(batch.obs.expand(2, -1, -1))[batch.member, range(len(batch.obs))]
        torch.testing.assert_close(batch.log_prob, params.log_softmax(-1)[range(len(batch.obs)), batch.action])


def test_what_comes_after_a_termination_does_not_count():
    env = Ladder([2, 99, 3, 99])
    agent = agent_for(env, groups=1)
    out = collect(env, agent, Streams(1, range(1))(2, "x"), **SETTINGS)
    assert out.outcome.episode_return.tolist() == [[3, 28, 6, 28]] and out.outcome.steps == 2 + 7 + 3 + 7
    assert all(x.isfinite().all() for batch in (out.master, out.low) for x in batch)
    assert out.master.obs.tolist() == [[0, e] for e in range(4)] + [[3, 1], [3, 3], [6, 1], [6, 3]]
    assert len(out.low.obs) == 2 + 7 + 3 + 7 == len(out.obs)
    assert sorted(out.low.obs[out.low.obs[:, 1] == 2][:, 0].tolist()) == [0, 1, 2]
    # no bootstrap: the last real step's advantage is its reward minus its value
    last = out.low.obs.tolist().index([1, 0])
    torch.testing.assert_close(out.low.advantage[last], 2 - out.low.value[last])
    torch.testing.assert_close(out.master.advantage[0], 3 - out.master.value[0])
    assert out.outcome.share.sum() == pytest.approx(1)


def test_a_truncation_before_the_horizon_is_bootstrapped():
    env = Ladder([99] * 4)
    step = env.step

    def cut(actions):  # episode 0 is truncated after two steps, within the master's first transition
        observation, reward, terminated, truncated, info = step(actions)
        truncated[0] = env._elapsed >= 2
        if env._elapsed > 2:
            observation[0] = reward[0] = torch.nan
        return observation, reward, terminated, truncated, info

    env.step = cut
    agent = agent_for(env, groups=1)
    out = collect(env, agent, Streams(1, range(1))(2, "x"), **SETTINGS)
    assert out.outcome.episode_return[0].tolist() == [3, 28, 28, 28] and out.outcome.steps == 2 + 3 * 7
    assert all(x.isfinite().all() for batch in (out.master, out.low) for x in batch)
    first = out.low.obs[:, 1] == 0
    assert out.low.obs[first][:, 0].tolist() == [0, 1]
    after = torch.tensor([[2.0, 0.0]])  # the observation at the cut
    value = agent.subs.value(after.expand(2, 1, 2))[out.low.member[first][-1], 0]
    expected = 2 + 0.9 * value - out.low.value[first][-1]
    torch.testing.assert_close(out.low.advantage[first][-1], expected)
    expected = 3 + 0.9 * agent.master.value(after[None])[0, 0] - out.master.value[0]
    torch.testing.assert_close(out.master.advantage[0], expected)


def test_a_group_does_not_depend_on_the_others():
    cfg = Config(T=7)
    one, two = make_env(cfg, 3), make_env(cfg, 6)
    one.set_task(0)
    two.set_task([0, 1])
    alone = collect(one, agent_for(one, 1), Streams(1, [0])(2, "x"), **SETTINGS)
    both = collect(two, agent_for(two, 2), Streams(1, [0, 1])(2, "x"), **SETTINGS)
    mine = both.low.group == 0
    for a, b in zip(alone.low, both.low, strict=True):
        torch.testing.assert_close(a, b[mine])
    assert torch.equal(alone.outcome.episode_return[0], both.outcome.episode_return[0])


def test_random_decisions_are_as_many_as_asked():
    env = Ladder([99] * 400)
    agent = agent_for(env, groups=1)
    with torch.no_grad():
        agent.master.policy_bias[..., 0] = 50.0  # always sub-policy 0
    share = {
        x: collect(env, agent, Streams(1, [0])(2, "x"), explore=x, **SETTINGS).outcome.share for x in (0.0, 0.2, 1.0)
    }
    assert share[0.0].tolist() == [[1, 0]]
    assert share[0.2][0, 1].item() == pytest.approx(0.1, abs=0.03)
    assert share[1.0][0, 1].item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("num_low", "high_len"), [(1, 3), (3, 1), (4, 7), (2, 99)])
def test_any_number_of_sub_policies_and_any_period(num_low, high_len):
    env = make_env(Config(T=7), 6)
    out = collect(env, agent_for(env, 2, num_low), Streams(1, range(2))(2, "x"), **SETTINGS | {"high_len": high_len})
    assert len(out.master.obs) == 6 * -(-7 // high_len) and len(out.low.obs) == 42
    assert out.outcome.share.shape == (2, num_low)
