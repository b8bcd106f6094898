from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlsh.config import Config
from mlsh.envs import env_ids, find_class, make_env
from mlsh.envs.base import VectorTasks
from mlsh.errors import EnvironmentFailed
from mlsh.models import FEW, Hierarchy
from mlsh.outcome import Outcome, concatenate_groups, concatenate_slots
from mlsh.ppo import gae
from mlsh.rollout import HierarchyActor, RolloutSettings, collect, evaluate
from mlsh.sampling import Streams
from mlsh.slots import Slots

SETTINGS = RolloutSettings(T=7, high_len=3, gamma=0.9, master_gamma=0.7, lam=0.8)


class Ladder(VectorTasks):
    """Reward t + 1 at step t of an episode; slot e's last lifetime[e] steps, then all is NaN; observes (t, e)."""

    train_tasks = [0]

    def __init__(self, lifetime, space=None):
        self.single_observation_space = Box(-9, 99, (2,), np.float32)
        self.single_action_space = space or Discrete(3)
        super().__init__(len(lifetime), None, None, "cpu")
        self.lifetime = torch.tensor(lifetime)
        self.actions = []

    def _reset(self, which):
        return self._observation()

    def _observation(self):
        observation = torch.stack((self._elapsed.float(), torch.arange(self.num_envs).float()), 1)
        observation[self._elapsed >= self.lifetime] = torch.nan
        return observation

    def _step(self, actions):
        self.actions.append(actions)
        reward = self._elapsed.float()
        reward[self._elapsed > self.lifetime] = torch.nan
        return self._observation(), reward, self._elapsed >= self.lifetime, {}


def agent_for(env, groups, num_sub_policies=2, seed=0):
    cfg = Config(groups=groups, num_sub_policies=num_sub_policies, hidden=8, normalise=False)
    agent = Hierarchy.build(cfg, env)
    agent.master.reset(Streams(seed, range(groups))(0, "master"))
    agent.sub_policies.reset(Streams(seed, range(num_sub_policies))(0, "subs"))
    return agent


@pytest.mark.parametrize("space", [Discrete(3), Box(-1, 1, (2,))])
def test_two_timescales_by_hand(space):
    """T = 7 is no multiple of the master's period 3: its last transition has one step."""
    env = Ladder([99, 99, 99, 99], space)
    agent = agent_for(env, groups=2)
    out = collect(env, agent, Streams(1, range(2))(2, "x"), replace(SETTINGS, reward_scale=0.5))
    master, low = out.master, out.sub_policies
    assert out.outcome.steps == 28 and out.outcome.episode_return.tolist() == [[28, 28], [28, 28]]
    # decisions at t = 0, 3, 6 in every episode, time-major
    assert master.obs[:, 0].tolist() == [0] * 4 + [3] * 4 + [6] * 4
    assert master.member.tolist() == master.group.tolist() == [0, 0, 1, 1] * 3
    macro = torch.tensor([6.0, 15.0, 7.0])[:, None].expand(3, 4) / 2  # 1+2+3, 4+5+6, 7, scaled
    at = torch.tensor([[t, e] for t in (0, 3, 6, 7) for e in range(4)], dtype=torch.float32)
    value = agent.master.value(at.expand(2, -1, -1))[[0, 0, 1, 1] * 4, range(16)].view(4, 4)
    advantage = gae(macro, value[:-1], value[1:], torch.ones(3, 4), 0.7, 0.8)
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
    value = agent.sub_policies.value(at.expand(2, -1, -1))[members, range(32)].view(8, 4)
    reward = torch.arange(1.0, 8)[:, None].expand(7, 4) / 2
    advantage = gae(reward, value[:-1], value[1:], torch.ones(7, 4), 0.9, 0.8)
    torch.testing.assert_close(low.advantage.view(7, 4), advantage)
    share = (members[:28].view(7, 2, 2) == 0).float().mean((0, 2))
    torch.testing.assert_close(out.outcome.share[:, 0], share)


def test_without_bootstrap_the_limit_ends_the_episode_for_the_master_alone():
    env = Ladder([99] * 4)
    env.max_episode_steps = 7
    agent = agent_for(env, groups=2)
    with_it, without = (
        collect(env, agent, Streams(1, range(2))(2, "x"), replace(SETTINGS, bootstrap=b)) for b in (True, False)
    )
    assert torch.equal(with_it.sub_policies.advantage, without.sub_policies.advantage)
    expected = gae(
        torch.tensor([6.0, 15.0, 7.0])[:, None].expand(3, 4),  # 1+2+3, 4+5+6, 7
        without.master.value.view(3, 4),
        torch.cat((without.master.value.view(3, 4)[1:], torch.zeros(1, 4))),
        torch.ones(3, 4),
        0.7,
        0.8,
    )
    torch.testing.assert_close(without.master.advantage.view(3, 4), expected)
    assert not torch.allclose(with_it.master.advantage.view(3, 4)[-1], expected[-1], atol=1e-4)


def test_the_environments_last_info_is_kept():
    env = Ladder([99] * 4)
    step = env._step
    env._step = lambda actions: (*step(actions)[:3], {"height": torch.arange(4.0) + env._elapsed})
    out = evaluate(env, agent_for(env, groups=2), Streams(1, range(2))(2, "x"), SETTINGS)
    assert {name: x.tolist() for name, x in out.final.items()} == {"height": [[7, 8], [9, 10]]}


@pytest.mark.parametrize("space", [Discrete(3), Box(-1, 1, (2,))])
def test_without_sub_policies_the_masters_act_at_every_step(space):
    env = Ladder([99, 3, 99, 99], space)
    cfg = Config(groups=2, num_sub_policies=0, hidden=8)
    agent = Hierarchy.build(cfg, env)
    agent.master.reset(Streams(0, range(2))(0, "master"))
    out = collect(env, agent, Streams(1, range(2))(2, "x"), replace(SETTINGS, high_len=1))
    assert out.sub_policies is None and out.outcome.share.shape == (2, 0) and out.outcome.steps == 28
    assert out.outcome.episode_return.tolist() == [[28, 6], [28, 28]]
    first = out.master.action[:4]
    assert torch.equal(first, env.actions[0])  # what the environment got is what is learned from
    at = torch.tensor([[0.0, e] for e in range(4)])
    params = agent.master.params(at.view(2, 2, 2)).view(4, -1)
    log_prob = agent.master.distribution(params).log_prob(first)
    torch.testing.assert_close(out.master.log_prob[:4], log_prob)
    assert out.master.member.tolist() == [0, 0, 1, 1] * 7


def test_log_probs_are_of_the_actions_taken():
    env = Ladder([99] * 4)
    agent = agent_for(env, groups=2)
    out = collect(env, agent, Streams(1, range(2))(2, "x"), SETTINGS)
    for batch, policy in ((out.master, agent.master), (out.sub_policies, agent.sub_policies)):
        params = policy.params(batch.obs.expand(2, -1, -1))[batch.member, range(len(batch.obs))]
        torch.testing.assert_close(batch.log_prob, params.log_softmax(-1)[range(len(batch.obs)), batch.action])


class Script(VectorTasks):
    """Slot e's episodes have the lengths and ends of scripts[e], in turn; reward and observation tell slot and step."""

    train_tasks = [0, 1]

    def __init__(self, scripts):
        self.single_observation_space = Box(-9, 99, (3,), np.float32)
        self.single_action_space = Discrete(3)
        super().__init__(len(scripts), None, None, "cpu")
        self.scripts, self.begun, self.actions, self.observed = scripts, [0] * len(scripts), [], []

    def _reset(self, which):
        for e in which:
            self.begun[e] += 1
        return self._observation()

    def _observation(self):
        rows = [[e / 3, self.begun[e] / 2, self._elapsed[e] / 5] for e in range(self.num_envs)]
        return torch.tensor(rows)

    def step(self, actions):
        self._elapsed += 1
        self.actions.append(actions)
        ends = [self.scripts[e][self.begun[e] - 1] for e in range(self.num_envs)]
        over = [int(self._elapsed[e]) == length for e, (length, _) in enumerate(ends)]
        terminated, truncated = (
            torch.tensor([x and end == kind for x, (_, end) in zip(over, ends, strict=True)])
            for kind in ("term", "trunc")
        )
        observation = self._observation()
        self.observed.append(observation.clone())
        observation[terminated] = torch.nan
        return observation, self._observation().sum(1), terminated, truncated, {}


def brute_force(env, agent, z, T, high_len, bootstrap, low):
    """The transitions of every slot by the definitions, in plain Python: (slot, step) -> advantage.

    `z` [T, E]: the sub-policy at every step.
    """
    gamma, lam, found = SETTINGS.gamma if low else SETTINGS.master_gamma, SETTINGS.lam, {}
    groups = agent.master.n

    def value(x, e, t):
        policy, k = (agent.sub_policies, z[t][e]) if low else (agent.master, e * groups // env.num_envs)
        return policy.value(x.expand(policy.n, 1, 3))[k, 0].item()

    for e in range(env.num_envs):
        t, episode = 0, 0
        while t < T:
            length, end = env.scripts[e][episode]
            last = min(t + length, T)  # the step after the episode's last one here
            end = end if t + length <= T else "cut"
            at = lambda s: torch.tensor([e / 3, (episode + 1) / 2, (s - t) / 5])  # noqa: B023, E731
            starts = list(range(t, last, 1 if low else high_len))
            advantage = 0.0
            for i in reversed(range(len(starts))):
                s, following = starts[i], starts[i + 1] if i + 1 < len(starts) else last
                reward = sum(at(u + 1).sum().item() for u in range(s, following))
                if following < last:
                    ahead = value(at(following), e, following)
                elif end == "term" or end == "trunc" and not (bootstrap or low):
                    ahead = 0.0
                else:
                    ahead = value(at(last), e, last - 1)
                delta = reward + gamma * ahead - value(at(s), e, s)
                advantage = delta + (gamma * lam * advantage if following < last else 0.0)
                found[e, s] = advantage
            t, episode = last, episode + 1
    return found


SCRIPTS = [
    [(2, "term"), (2, "trunc"), (9, "term")],  # within a decision
    [(3, "term"), (3, "trunc"), (9, "term")],  # at a decision's boundary
    [(1, "trunc")] * 7,
    [(1, "term")] * 7,
    [(7, "trunc"), (9, "term")],  # at the end of the rollout
    [(6, "term"), (9, "trunc")],
]


@pytest.mark.parametrize("bootstrap", [True, False])
@pytest.mark.parametrize("high_len", [1, 2, 3, 99])
def test_a_slot_goes_on_with_new_episodes_and_every_step_is_learned_from(high_len, bootstrap):
    """Against every slot's episodes one by one, in plain Python; each begins with a decision of its own."""
    env = Script(SCRIPTS)
    agent = agent_for(env, groups=2)
    settings = replace(SETTINGS, high_len=high_len, bootstrap=bootstrap)
    out = collect(env, agent, Streams(1, range(2))(2, "x"), settings)
    assert out.outcome.steps == len(out.sub_policies.obs) == len(out.obs) == 42
    assert all(x.isfinite().all() for batch in (out.master, out.sub_policies) for x in batch if x is not None)
    z = out.sub_policies.member.view(7, 6)
    assert torch.equal(out.sub_policies.action.view(7, 6), torch.stack(env.actions))
    low = brute_force(env, agent, z.tolist(), 7, high_len, bootstrap, low=True)
    expected = torch.tensor([[low[e, t] for e in range(6)] for t in range(7)])
    torch.testing.assert_close(out.sub_policies.advantage.view(7, 6), expected)
    master = brute_force(env, agent, z.tolist(), 7, high_len, bootstrap, low=False)
    slot = (out.master.obs[:, 0] * 3).round().long()
    for e in range(6):  # decisions of a slot are in order
        mine, starts = slot == e, sorted(t for slot_e, t in master if slot_e == e)
        torch.testing.assert_close(out.master.advantage[mine], torch.tensor([master[e, t] for t in starts]))
        assert out.master.action[mine].tolist() == [z[t, e] for t in starts]  # who was chosen is who acts
        assert out.master.member[mine].unique().tolist() == [e // 3]


def test_what_follows_a_truncation_has_to_be_finite_too():
    env = Script([[(2, "trunc"), (9, "term")], [(9, "term")]])
    step = env.step

    def blind(actions):
        observation, *rest = step(actions)
        observation[rest[2]] = torch.nan
        return observation, *rest

    env.step = blind
    with pytest.raises(FloatingPointError, match="an observation that is not finite at step 2, task 0"):
        collect(env, agent_for(env, groups=1), Streams(1, range(1))(2, "x"), SETTINGS)


def test_training_reports_complete_episodes_and_evaluation_the_first():
    """Slot 0 has episodes of 2, 2 and, cut short, 3 steps; slot 1 one that is not over."""
    env = Script([[(2, "term"), (2, "trunc"), (9, "term")], [(9, "term")]])
    agent = agent_for(env, groups=1)
    reward = lambda e, episode, t: e / 3 + episode / 2 + t / 5  # noqa: E731
    first, second = (sum(reward(0, i, t) for t in (1, 2)) for i in (1, 2))
    whole = sum(reward(1, 1, t) for t in range(1, 8))
    out = collect(env, agent, Streams(1, range(1))(2, "x"), SETTINGS).outcome
    assert out.episode_return[0].tolist() == pytest.approx([(first + second) / 2, whole])
    assert out.episode_length[0].tolist() == [2, 7]
    env.begun = [0, 0]
    out = evaluate(env, agent, Streams(1, range(1))(2, "x"), SETTINGS)
    assert out.episode_return[0].tolist() == pytest.approx([first, whole]) and out.steps == 2 + 7
    assert out.episode_length[0].tolist() == [2, 7]
    env.scripts, env.begun, env.actions = [[(2, "term")], [(3, "trunc")]], [0, 0], []
    out = evaluate(env, agent, Streams(1, range(1))(2, "x"), SETTINGS)
    assert out.steps == 5 and len(env.actions) == 3  # nothing is simulated when all are over
    assert out.share.sum() == pytest.approx(1)


class EndsOnce(Ladder):
    """States the end of an episode at one step only; everything after it is NaN."""

    def _step(self, actions):
        observation, reward, _, info = super()._step(actions)
        return observation, reward, self._elapsed == self.lifetime, info


def test_a_slot_whose_evaluation_episode_is_over_stays_as_it_is():
    env = EndsOnce([99, 2])
    out = evaluate(env, agent_for(env, groups=1), Streams(1, [0])(2, "x"), SETTINGS)
    assert out.episode_return.tolist() == [[28, 3]] and out.steps == 7 + 2


@pytest.mark.parametrize("ends", [False, True])
def test_a_group_does_not_depend_on_the_others(ends):
    cfg = Config(T=7)
    if ends:
        one, two = Script(SCRIPTS[:3]), Script(SCRIPTS)
    else:
        one, two = make_env(cfg, 3), make_env(cfg, 6)
    one.set_task(0)
    two.set_task([0, 1])
    alone = collect(one, agent_for(one, 1), Streams(1, [0])(2, "x"), replace(SETTINGS, explore=0.5))
    both = collect(two, agent_for(two, 2), Streams(1, [0, 1])(2, "x"), replace(SETTINGS, explore=0.5))
    mine = both.sub_policies.group == 0
    for name, x in alone.sub_policies._asdict().items():
        if name != "anchor":  # which training does not have
            torch.testing.assert_close(x, getattr(both.sub_policies, name)[mine])
    assert torch.equal(alone.outcome.episode_return[0], both.outcome.episode_return[0])


def test_random_decisions_are_as_many_as_asked():
    env = Ladder([99] * 400)
    agent = agent_for(env, groups=1)
    with torch.no_grad():
        agent.master.policy_bias[..., 0] = 50.0  # always sub-policy 0
    share = {
        x: collect(env, agent, Streams(1, [0])(2, "x"), replace(SETTINGS, explore=x)).outcome.share
        for x in (0.0, 0.2, 1.0)
    }
    assert share[0.0].tolist() == [[1, 0]]
    assert share[0.2][0, 1].item() == pytest.approx(0.1, abs=0.03)
    assert share[1.0][0, 1].item() == pytest.approx(0.5, abs=0.05)


def test_a_random_decision_counts_for_the_sub_policies_as_likely_as_it_was_to_the_master():
    env = Ladder([99, 5])  # at t = 7 slot 1 is two steps into its second episode, and was due at 0, 3 and 5
    agent = agent_for(env, groups=1)
    with torch.no_grad():
        agent.master.policy_weight.zero_()
        agent.master.policy_bias.copy_(torch.tensor([0.9, 0.1]).log())
    found = set()
    for seed in range(20):
        low = collect(env, agent, Streams(seed, [0])(2, "x"), replace(SETTINGS, explore=0.2)).sub_policies
        weight, z = low.importance.view(7, 2), low.member.view(7, 2)
        by_hand = torch.where(z == 0, 0.892 / 0.82, 0.108 / 0.18)  # one random in 50, over one in 5
        torch.testing.assert_close(weight, by_hand)
        found |= set(z.flatten().tolist())
    assert found == {0, 1}
    assert collect(env, agent, Streams(1, [0])(2, "x"), SETTINGS).sub_policies.importance is None


def test_a_sub_policy_that_no_master_wants_learns_from_all_alike():
    env = Ladder([99, 99, 99, 99])
    agent = agent_for(env, groups=2)
    with torch.no_grad():  # both never take sub-policy 1, the one a trillion times less ever than the other
        agent.master.policy_weight.zero_()
        agent.master.policy_bias[:, 0, 1] = torch.tensor([-20.0, -48.0])
    settings = replace(SETTINGS, explore=0.2)
    batches = [collect(env, agent, Streams(seed, [0, 1])(2, "x"), settings).sub_policies for seed in range(20)]
    weight, member, group = (
        torch.cat([getattr(b, name) for b in batches]) for name in ("importance", "member", "group")
    )
    assert set(group[member == 1].tolist()) == {0, 1}
    torch.testing.assert_close(weight, torch.where(member == 1, 0.1, 0.99 / 0.9))


def test_weights_are_of_the_decision_under_which_a_step_was_taken():
    """The masters of two groups decide by what they see, in slots whose episodes begin at different steps."""
    env = Ladder([99, 4, 2, 99])
    agent = agent_for(env, groups=2)
    with torch.no_grad():
        agent.master.policy_weight.normal_(generator=torch.Generator().manual_seed(0))
    low = collect(env, agent, Streams(3, [0, 1])(2, "x"), replace(SETTINGS, explore=0.5)).sub_policies
    weight, z = low.importance.view(7, 4), low.member.view(7, 4)
    for e, life in enumerate((99, 4, 2, 99)):
        for t in range(7):
            age = t % life
            seen = torch.tensor([age - age % 3, e]).expand(2, 1, 2).float()  # when the decision was made
            chosen = agent.master.params(seen)[e // 2, 0].softmax(0)[z[t, e]]
            wanted = (0.95 * chosen + 0.025) / (0.5 * chosen + 0.25)
            torch.testing.assert_close(weight[t, e], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("num_sub_policies", "high_len"), [(1, 3), (3, 1), (4, 7), (2, 99)])
def test_any_number_of_sub_policies_and_any_period(num_sub_policies, high_len):
    env = make_env(Config(T=7), 6)
    out = collect(
        env, agent_for(env, 2, num_sub_policies), Streams(1, range(2))(2, "x"), replace(SETTINGS, high_len=high_len)
    )
    assert len(out.master.obs) == 6 * -(-7 // high_len) and len(out.sub_policies.obs) == 42
    assert out.outcome.share.shape == (2, num_sub_policies)


def test_outcomes_are_put_side_by_side():
    def one(returns, share, **final):
        final = {name: torch.tensor(x) for name, x in final.items()}
        returns = torch.tensor(returns)
        return Outcome(returns, returns + 1, torch.tensor(share), 5, torch.tensor([1, 0]), final)

    a, b = (
        one([[1.0], [2.0]], [[1.0, 0], [0, 1.0]], up=[[1.0], [0.0]]),
        one([[3.0] * 3] * 2, [[0.0, 1]] * 2, at=[[7.0] * 3] * 2),
    )
    out = concatenate_slots([a, b])
    assert out.episode_return.tolist() == [[1, 3, 3, 3], [2, 3, 3, 3]] and out.steps == 10
    assert out.share.tolist() == [[0.25, 0.75], [0, 1]] and out.diverged.tolist() == [2, 0]
    assert out.final_means() == {"final_up": [1, 0], "final_at": [7, 7]}
    assert concatenate_groups([a, a]).final_means() == {"final_up": [1, 0, 1, 0]}
    assert concatenate_groups([a, one([[3.0]], [[0.0, 1]])]).final_means() == {"final_up": [1, 0, None]}


class Waits(TorchDispatchMode):
    """Counts what a CPU would have to wait for, were the tensors on a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._opname in ("_local_scalar_dense", "nonzero", "masked_select", "equal")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("env_id", ["MovementBandits-v0", "KeyDoor-v0", "Allwalk-v0", "MovementBanditsConv-v0"])
@pytest.mark.parametrize("play", [collect, evaluate])
def test_no_step_but_the_last_waits_for_a_device(env_id, play):
    counts = []
    for T in (4, 40):
        cfg = Config.defaults(env_id)
        env = make_env(replace(cfg, T=T), 2)
        agent = agent_for(env, groups=1)
        with Waits() as waits:
            play(env, agent, Streams(1, range(1))(0, "x"), replace(SETTINGS, T=T))
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0


class Transfers(TorchDispatchMode):
    """Counts operations on tensors of several devices; scalars on the CPU cause no waiting."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor) and x.dim()]
        self.count += len({x.device for x in tensors}) > 1
        return out


NEVER_TERMINATE = [id for id in env_ids() if not getattr(find_class(id), "terminates", True)]


@pytest.mark.parametrize("env_id", NEVER_TERMINATE)
def test_no_step_reads_from_a_device_or_sends_to_it(env_id):
    cfg = replace(Config.defaults(env_id), T=12, high_len=5, groups=2, explore=0.1, device="meta")
    env = make_env(cfg, 2 * FEW)  # so many that slots are sorted by sub-policy
    rngs = Streams(1, range(2))(0, "x")
    actor = HierarchyActor(Hierarchy.build(cfg, env), rngs, FEW, cfg.training_rollout(0))
    slots = Slots(env, [1, 2], cfg.T)
    with Transfers() as transfers, torch.no_grad():
        while slots.t < cfg.T - 1:  # the "meta" device holds no numbers: to read one is an error
            slots.step(actor.act(slots))
    assert transfers.count == 0


@pytest.mark.parametrize("play", [collect, evaluate])
@pytest.mark.parametrize("T", [2, 3, 10])
def test_to_say_that_nothing_terminates_changes_nothing(play, T):
    seen = []
    for terminates in (True, False):
        env = make_env(replace(Config.defaults("MovementBandits-v0"), T=3), 4)
        env.terminates = terminates
        out = play(env, agent_for(env, groups=2), Streams(1, range(2))(0, "x"), replace(SETTINGS, T=T))
        seen.append((out.obs, *out.sub_policies[:-2], *out.outcome[:3]) if play is collect else out[:4])
    for a, b in zip(*seen, strict=True):
        assert a == b if isinstance(a, int) else torch.equal(a, b)


@pytest.mark.parametrize("play", [collect, evaluate])
@pytest.mark.parametrize("lifetime", [[5, 99], [99, 6]])
def test_an_environment_that_terminates_has_to_say_so(play, lifetime):
    env = Ladder(lifetime)
    env.terminates = False
    with pytest.raises(EnvironmentFailed, match="Ladder has ended an episode before its time limit"):
        play(env, agent_for(env, groups=1), Streams(1, range(1))(0, "x"), SETTINGS)


@pytest.mark.parametrize("explore", [0.0, 0.5])
def test_each_group_may_have_sub_policies_of_its_own(explore):
    cfg, settings = replace(Config.defaults("MovementBandits-v0"), T=20), replace(SETTINGS, T=20, explore=explore)
    one, two = make_env(cfg, 4), make_env(cfg, 8)
    two.set_task([0, 1])
    agent = agent_for(two, 2)
    noisy = agent.sub_policies.copies_of([0, 1, 0, 1])
    with torch.no_grad():
        noisy.policy_bias += torch.randn(noisy.policy_bias.shape, generator=torch.Generator().manual_seed(0))
    both = collect(two, agent._replace(sub_policies=noisy), Streams(1, [0, 1])(2, "x"), settings)
    assert both.sub_policies.member.unique().tolist() == [0, 1, 2, 3] and both.outcome.share.shape == (2, 2)
    for g in (0, 1):
        one.set_task(g)
        own = noisy.copies_of([2 * g, 2 * g + 1])
        alone_agent = agent._replace(master=agent.master.copies_of([g]), sub_policies=own)
        alone = collect(one, alone_agent, Streams(1, [g])(2, "x"), settings)
        mine = both.sub_policies.group == g
        assert torch.equal(both.sub_policies.member[mine], alone.sub_policies.member + 2 * g)
        for name in ("obs", "action", "log_prob", "advantage", "value", "value_target"):
            torch.testing.assert_close(getattr(alone.sub_policies, name), getattr(both.sub_policies, name)[mine])
        assert torch.equal(alone.outcome.episode_return[0], both.outcome.episode_return[g])
