import csv
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from mlsh import parallel
from mlsh.baselines.option_critic import OptionCriticConfig, begin_task, learn, make_optimizers
from mlsh.baselines.options import Losses, OptionSettings, OptionSteps, objective, play_options, update_options
from mlsh.envs import find_preset
from mlsh.sampling import Streams
from test_meta_test import Guess
from test_rollout import Ladder

CREDIT = OptionSettings(
    T=7, n_steps=3, gamma=0.5, lam=0.8, explore=0.2, margin=0.1, entropy_coef=0.01, reward_scale=1.0
)
TINY = "-N 2 --groups 2 --rollouts 2 --n_steps 3 -T 7 --wandb disabled".split()


class Table:
    """Two states, observed one-hot, two options and two actions, all in tables: what an OptionCritic is asked for."""

    normaliser = staticmethod(lambda x: x)
    options = SimpleNamespace(distribution=lambda params: torch.distributions.Categorical(logits=params))

    def __init__(self):
        self.preferences = torch.zeros(2, 2, 2, requires_grad=True)  # [option, state, action]
        self.logits = torch.tensor(
            [[0.0, -math.log(3)], [0.0, 0.0]], requires_grad=True
        )  # β of option 0 in state 1: 1/4
        self.q = torch.tensor([[1.0, 2.0], [3.0, 1.0]], requires_grad=True)  # [state, option]

    def policy(self, x, z):
        return self.preferences[z, x.argmax(-1)]

    def termination(self, x, z):
        return self.logits[z, x.argmax(-1)].sigmoid()

    def values(self, x):
        return self.q[x.argmax(-1)]


def two_steps(terminated=False, truncated=False):
    """State 0, option 0, reward 1; state 1, option 1, reward 2; state 0. The second may end the episode."""
    state = torch.eye(2)
    flags = (torch.tensor([[False], [flag]]) for flag in (terminated, truncated))
    z = torch.tensor([[0], [1]])
    return OptionSteps(state[[0, 1]][:, None], z, z, torch.tensor([[1.0], [2.0]]), state[[1, 0]][:, None], *flags)


# V(0) = .8·2 + .2·1.5 = 1.9, V(1) = .8·3 + .2·2 = 2.8; U(0, 1) = ¾·3 + ¼·2.8 = 2.95, U(1, 0) = ½·2 + ½·1.9 = 1.95
@pytest.mark.parametrize(
    ("lam", "ends", "advantage"),
    [
        (0, {}, (1 + 0.5 * 2.95 - 1, 2 + 0.5 * 1.95 - 1)),
        (1, {}, (1.475 + 0.5 * 1.975, 1.975)),
        (0.5, {}, (1.475 + 0.25 * 1.975, 1.975)),
        (1, {"truncated": True}, (1.475 + 0.5 * 1.975, 1.975)),  # the value goes on
        (1, {"terminated": True}, (1.475 + 0.5 * 1, 2 - 1)),  # nothing follows
    ],
)
def test_targets_and_gradients_by_hand(lam, ends, advantage):
    table = Table()
    losses = objective(table, two_steps(**ends), replace(CREDIT, lam=lam))
    first, second = advantage
    np.testing.assert_allclose(losses.value_loss.detach()[:, 0], [first**2, second**2], rtol=1e-5)
    np.testing.assert_allclose(losses.entropy.detach(), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(losses.termination[:, 0], [0.25, 0.5], rtol=1e-6)
    sum(x.sum() for x in losses[:3]).backward()
    # intra-option policy gradient: the probability of what was done rises with its advantage
    expected = np.zeros((2, 2, 2))
    expected[0, 0], expected[1, 1] = (-first / 2, first / 2), (second / 2, -second / 2)
    np.testing.assert_allclose(table.preferences.grad, expected, rtol=1e-5)
    # termination gradient: β(1 − β) (Q(s', ω) − V(s') + ξ), of the option that arrives
    arrives = 0 if "terminated" in ends else 0.25 * (2 - 1.9 + 0.1)
    expected = [[0, 3 / 16 * (3 - 2.8 + 0.1)], [arrives, 0]]
    np.testing.assert_allclose(table.logits.grad, expected, rtol=1e-5)
    np.testing.assert_allclose(table.q.grad, [[-2 * first, 0], [0, -2 * second]], rtol=1e-5)  # targets stay


def agent_for(env, **settings):
    cfg = OptionCriticConfig(**{"hidden": 8, "normalise": False, "T": 7, "n_steps": 3, "groups": 2} | settings)
    agent = cfg.build(env)
    agent.options.reset([np.random.default_rng(k) for k in range(agent.options.n)])
    agent.critic.reset([np.random.default_rng(9 + k) for k in range(agent.critic.n)])
    return agent, cfg


def record(env, agent, T=7, explore=0.0, n_steps=3, groups=2, seed=0):
    parts, settings = [], replace(CREDIT, T=T, explore=explore, n_steps=n_steps)
    rngs = Streams(seed, range(groups))(0, "x")
    return *play_options(env, agent, rngs, settings, parts.append), parts


@pytest.mark.parametrize("space", [Discrete(3), Box(-1, 1, (2,))])
def test_a_rollout_by_hand(space):
    env = Ladder([99, 2, 3, 99], space)
    agent, _ = agent_for(env)
    played, obs, parts = record(env, agent)
    assert [len(part.z) for part in parts] == [3, 3, 1] and played.steps == 28 and obs.shape == (28, 2)
    steps = OptionSteps(*(torch.cat(field) for field in zip(*parts, strict=True)))
    assert all(x.isfinite().all() for x in steps)
    assert steps.reward[:, 1].tolist() == [1, 2, 1, 2, 1, 2, 1] and steps.reward[:, 0].tolist() == [*range(1, 8)]
    assert steps.obs[:, 2, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert steps.following[:, 2, 0].tolist() == [1, 2, 2, 1, 2, 2, 1]  # what comes after a termination stays out
    assert steps.terminated[:, 1].tolist() == [False, True] * 3 + [False]
    assert played.episode_return.tolist() == [[28, 3], [6, 28]] and played.episode_length.tolist() == [[7, 2], [3, 7]]
    assert played.share.shape == (2, 4) and played.share.sum(1).tolist() == pytest.approx([1, 1])


def test_an_option_goes_on_until_it_terminates():
    env = Ladder([99, 4, 99, 99])
    agent, _ = agent_for(env)
    with torch.no_grad():
        agent.options.value_bias.fill_(-99)  # β = 0
    (steps,) = record(env, agent, n_steps=7, explore=1.0)[2]
    assert (steps.z == steps.z[0]).all(1).tolist()[:4] == [True] * 4
    assert (steps.z[:, [0, 2, 3]] == steps.z[0, [0, 2, 3]]).all()
    assert (steps.z[4:, 1] == steps.z[4, 1]).all()
    (steps,) = record(env, agent, T=60, n_steps=60, explore=1.0)[2]
    assert len(steps.z[::4, 1].unique()) == 4 and torch.equal(steps.z[::4, 1], steps.z[3::4, 1])  # 15 episodes
    with torch.no_grad():
        agent.options.value_bias.fill_(99)  # β = 1
    (steps,) = record(env, agent, n_steps=7)[2]
    assert torch.equal(steps.z, agent.values(steps.obs).argmax(-1)) and len(steps.z.unique()) > 1
    (steps,) = record(env, agent, T=300, n_steps=300, explore=1.0)[2]
    assert torch.bincount(steps.z.flatten()).tolist() == pytest.approx([300] * 4, abs=60)


def test_each_slot_has_its_own_options_and_critic():
    env = Ladder([99] * 4)
    agent, _ = agent_for(env, shared="nothing", num_options=3)
    assert agent.options.n == 6 and agent.critic.n == 2
    x, z = torch.randn(5, 4, 2), torch.randint(3, (5, 4))
    params, beta, values = agent.policy(x, z), agent.termination(x, z), agent.values(x)
    for t, e in np.ndindex(5, 4):
        one = agent.options.copies_of([e // 2 * 3 + z[t, e].item()])
        torch.testing.assert_close(params[t, e], one.params(x[t : t + 1, e : e + 1])[0, 0])
        torch.testing.assert_close(beta[t, e], one.value(x[t : t + 1, e : e + 1])[0, 0].sigmoid())
        torch.testing.assert_close(values[t, e], agent.critic.copies_of([e // 2]).params(x[t : t + 1, e : e + 1])[0, 0])


def test_one_option_is_an_actor_critic():
    """A2C with the networks written out; terminations play no role."""
    env = Ladder([99, 2, 3, 99])
    agent, _ = agent_for(env, num_options=1, shared="all")
    (steps,) = record(env, agent, n_steps=7)[2]
    with torch.no_grad():
        agent.options.value_bias.fill_(5)
        agent.options.value_weight.mul_(-3)
    again = record(env, agent, n_steps=7)[2][0]
    assert all(torch.equal(a, b) for a, b in zip(steps, again, strict=True))
    losses = objective(agent, steps, replace(CREDIT, margin=0.0))
    value, then = (agent.critic.params(x.view(1, -1, 2)).view(7, 4).detach() for x in (steps.obs, steps.following))
    logits = agent.options.params(steps.obs.view(1, -1, 2)).view(7, 4, 3)
    advantage = torch.zeros(8, 4)
    for t in reversed(range(7)):
        delta = steps.reward[t] + 0.5 * then[t] * ~steps.terminated[t] - value[t]
        advantage[t] = delta + 0.5 * 0.8 * advantage[t + 1] * ~steps.terminated[t]
    torch.testing.assert_close(losses.value_loss, advantage[:7].square(), rtol=1e-4, atol=1e-6)
    done = logits.log_softmax(-1).gather(-1, steps.action[..., None])[..., 0]
    torch.testing.assert_close(losses.policy_loss, -done * advantage[:7], rtol=1e-4, atol=1e-6)
    losses.termination_loss.sum().backward()
    assert all(p.grad is None or (p.grad.abs() < 1e-6).all() for p in agent.options.parameters())


def test_a_step_is_of_each_blocks_own_mean():
    """What a group learns does not depend on how many there are, nor on what they do."""
    env = Ladder([99, 2, 3, 99])
    agent, cfg = agent_for(env, shared="nothing")
    alone = agent.copies(1)._replace(options=agent.options.copies_of([4, 5, 6, 7]), critic=agent.critic.copies_of([1]))
    (steps,) = record(env, agent, n_steps=7)[2]
    mine = OptionSteps(*(x[:, 2:] for x in steps))
    for some, its in ((agent, steps), (alone, mine)):
        update_options(some, make_optimizers(some, cfg), its, cfg.settings)
    for name, p in alone.options.named_parameters():
        torch.testing.assert_close(agent.options.get_parameter(name)[4:], p)
        assert not torch.equal(p, torch.zeros_like(p)) or "bias" in name
    torch.testing.assert_close(agent.critic.policy_weight[1:], alone.critic.policy_weight)


@pytest.mark.parametrize(
    ("shared", "options", "critic"), [("options", True, False), ("all", True, True), ("nothing", False, False)]
)
def test_what_a_new_task_begins_with(shared, options, critic):
    agent, cfg = agent_for(Ladder([99] * 4), shared=shared)
    optimizers = make_optimizers(agent, cfg)
    learn(Ladder([99] * 4), agent, optimizers, Streams(0, range(2))(0, "x"), cfg)
    before = [part.policy_weight.clone() for part in agent[:2]]
    begin_task(agent, optimizers, Streams(0, range(2)), 1, cfg)
    for part, old, optimizer, kept in zip(agent, before, optimizers, (options, critic), strict=False):
        assert torch.equal(part.policy_weight, old) == kept and (len(optimizer.state) > 0) == kept
        if not kept and part.n > 1:
            assert not torch.equal(part.weight1[0], part.weight1[1])


@pytest.mark.parametrize("num_options", [1, 2])
def test_it_learns_to_take_the_action_that_pays(num_options):
    env = Guess(30)
    env.set_task([0, 1, 2])
    settings = dict(groups=3, shared="nothing", T=30, n_steps=5, lr=0.05, lr_critic=0.05, gamma=0.0)
    agent, cfg = agent_for(env, num_options=num_options, **settings)
    optimizers = make_optimizers(agent, cfg)
    for i in range(12):
        played, _, losses = learn(env, agent, optimizers, Streams(0, range(3))(i, "x"), cfg)
        if not i:
            assert tuple(losses) == Losses._fields
    paid = torch.cat([part.reward for part in record(env, agent, T=30, groups=3)[2]])
    assert (paid.view(30, 3, 10).mean((0, 2)) > 0.8).all()


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [{name: x for name, x in row.items() if name != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    "flags",
    [
        "--shared options",
        "--shared nothing --num_options 1 --env foreign:Terminated-v0",
        "--shared all --num_options 2",
    ],
)
def test_continuing_ends_where_an_uninterrupted_run_ends(command, tmp_path, flags):
    flags = [*TINY, *flags.split()]
    assert command("train_option_critic.py", *flags, "--tasks", 3, "--out", tmp_path / "whole")[0] == 0
    assert command("train_option_critic.py", *flags, "--tasks", 2, "--out", tmp_path / "parts")[0] == 0
    code, _, err = command("train_option_critic.py", "-c", "--tasks", 3, "--out", tmp_path / "parts")
    assert code == 0, err
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts") and len(rows(tmp_path / "whole")) == 6
    a, b = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts"))
    for part in ("options", "critic", "normaliser"):
        assert all(torch.equal(a[part][name], x) for name, x in b[part].items())
    assert a["kind"] == "option-critic" and a["env_steps"] == b["env_steps"] >= 3 * 2 * 4 * 7


def test_a_line_in_evaluate(command, tmp_path):
    names = {"transferred": ("options", 4), "scratch": ("nothing", 1), "whole": ("all", 2)}
    for name, (shared, num_options) in names.items():
        flags = ["--tasks", 1, "--shared", shared, "--num_options", num_options, "--normalise"]
        assert command("train_option_critic.py", *TINY, *flags, "--out", tmp_path / name)[0] == 0
    runs = [tmp_path / name for name in names]
    flags = ["--updates", 2, "--seeds", 2, "-N", 3]
    code, out, err = command("evaluate.py", *runs, *flags, "--out", tmp_path / "x")
    assert code == 0, err
    with open(tmp_path / "x" / "adaptation.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == 3 * 2 * 2 * 3 and {row["run"] for row in read} == set(names)
    assert sorted({row["env_steps"] for row in read}) == ["0", "21", "42"]
    assert command("evaluate.py", *runs, *flags, "--out", tmp_path / "y")[1] == out
    assert command("evaluate.py", runs[0], *flags, "--eval_episodes", 2, "--tasks", 1, "--out", tmp_path / "z")[0] == 0
    code, _, err = command("evaluate.py", runs[0], "--env", "MovementBandits4-v0", "--out", tmp_path / "w")
    assert code == 2 and "does not fit" in err
    code, _, err = command("train.py", "-c", "--out", runs[0])
    assert code == 2 and "belongs to a run of kind 'option-critic'; give one of kind mlsh" in err


def test_one_line_errors(command, monkeypatch, tmp_path):
    for flags, reason in (
        (("--num_options", 0), "--num_options is 0"),
        (("--explore", 2), "--explore is 2.0: use a number from 0 to 1"),
        (("--shared", "some"), "--shared"),
        (("-N", 99_999_999), "of memory or more"),
    ):
        code, _, err = command("train_option_critic.py", *TINY, *flags, "--out", tmp_path / "x")
        assert code == 2 and reason in err and err.count("\n") == 1, err
    monkeypatch.setattr(parallel, "SIZE", 2)
    code, _, err = command("train_option_critic.py")
    assert code == 2 and "start it without torchrun" in err


def test_the_experience_is_that_of_mlsh():
    known, cfg = find_preset("Fourrooms-v0"), OptionCriticConfig.defaults("Fourrooms-v0")
    assert cfg.rollouts == known["W"] + known["U"] and (cfg.N, cfg.T, cfg.tasks) == (20, 100, known["tasks"])
    assert cfg.episodes_at_once(1) == 20 * cfg.groups and not cfg.normalise
    assert replace(cfg, shared="all").new_parts == ()


def test_tracking_has_losses_and_returns(command, tmp_path):
    from test_tracking import scalars

    flags = [*TINY, "--tasks", 2, "--tensorboard", "--out", tmp_path]
    assert command("train_option_critic.py", *flags)[0] == 0
    logged, read = scalars(tmp_path), rows(tmp_path)
    names = {f"losses/{name}" for name in Losses._fields} | {"charts/trained_reward", "tasks/1_joint_reward"}
    assert names <= set(logged)
    assert [x for _, x in logged["losses/entropy"]] == pytest.approx([float(r["entropy"]) for r in read[::2]], rel=1e-4)
