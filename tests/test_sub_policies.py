"""The report on sub-policies, and the returns of planned masters over them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from conftest import TINY
from mlsh import ceiling
from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.envs.grid_world import Dynamics, solve, solve_over
from mlsh.models import ActorCritic, Hierarchy
from mlsh.outcome import information
from mlsh.sampling import Streams
from mlsh.sub_policies import SubPolicyReport, differences, play_alone, report_sub_policies


def corridor(ends):
    """Cells 0 to 4, of which the agent starts in 2; task 0 pays at the left end, task 1 at the right end."""
    following = torch.tensor([[max(s - 1, 0), min(s + 1, 4)] for s in range(5)])[None, :, :, None]
    pays = torch.stack([following[0] == goal for goal in (0, 4)])
    return Dynamics.broadcast(torch.tensor(2), following, pays.float(), pays & ends)


LEFT_AND_RIGHT = torch.tensor([[[1.0, 0.0]] * 5, [[0.0, 1.0]] * 5])
EITHER = torch.full((1, 5, 2), 0.5)


@pytest.mark.parametrize("ends", [True, False])
def test_the_best_master_of_a_corridor_by_hand(ends):
    dynamics = corridor(torch.tensor(ends))
    assert solve_over(dynamics, LEFT_AND_RIGHT, 5, 2).tolist() == ([1, 1] if ends else [4, 4])
    assert solve_over(dynamics, LEFT_AND_RIGHT[:1], 5, 2).tolist() == ([1, 0] if ends else [4, 0])
    # one step left or right: after two steps the agent is at an end with probability 1/4
    assert solve_over(dynamics, EITHER, 2, 2).tolist() == [0.25, 0.25]
    assert torch.equal(solve_over(dynamics, LEFT_AND_RIGHT, 5, 1), solve(dynamics, 5)[0].double())


def test_a_plan_for_points_is_as_good_as_the_rules_allow(monkeypatch):
    """Two sub-policies that always go right, and always up: the best plan of two decisions is among four."""
    monkeypatch.setattr(ceiling, "STARTS", 200)
    cfg = Config(T=10, high_len=5, num_sub_policies=2, normalise=False)
    env = make_env(cfg, 200)
    agent = Hierarchy.build(cfg, env)
    with torch.no_grad():
        agent.sub_policies.policy_bias[0, 0, 1] = agent.sub_policies.policy_bias[1, 0, 3] = 100.0
    env.set_task(1)
    env.reset(seed=ceiling.draw_seeds(Streams(cfg.seed, range(1))(0, "ceiling")))
    goal = env.goals[:, 1].numpy()
    paid = np.zeros((4, 200))
    for plan in range(4):
        at = np.full((200, 2), 200.0)
        for t in range(10):
            at[:, plan >> (t // 5) & 1] += 20
            paid[plan] += ((at - goal) ** 2).sum(1) < 2500
    assert ceiling.ceilings(agent, cfg, [1]) == [pytest.approx(paid.max(0).mean())]
    assert paid.max(0).mean() > paid.mean(1).max()


def test_an_ant_slides_along_the_walls_of_its_maze():
    """In maze 4 the three blocks of the middle row are open, and the goal is at (48, 0)."""
    free, goal = ceiling.is_free(4), np.array([48.0, 0.0])
    start = np.array([[10.0, 0.0], [10.0, 0.0], [46.0, 0.0]])
    moved = np.array([[20.0, 0.0], [10.0, 20.0], [10.0, 0.0]])
    to, paid = ceiling.slide(free, goal, start, moved, 0.025)
    assert to[0].tolist() == [30, 0] and paid[0] == pytest.approx(20 / 0.025)
    # a wall is at y = 8: free for three of ten parts, and then along it at half the speed
    assert to[1].tolist() == [10 + 3 + 7 / 2, 6] and paid[1] == pytest.approx((6.5 - 6) / 0.025)
    assert 46 <= to[2, 0] < 48 - ceiling.CLEARANCE + 0.25


def test_information_in_bits():
    assert information(np.eye(4)) == 2 and information(np.full((4, 4), 0.25)) == 0
    assert {f"{information(np.array([x] * 5)):.2f}" for x in ([1, 0], [0.0312, 0.9688])} == {"0.00"}  # never -0.00
    assert information(np.array([[1, 0], [1, 0], [0, 1], [0, 1]])) == 1
    assert information(np.array([[0.75, 0.25], [0.25, 0.75]])) == pytest.approx(1 - 0.811278, abs=1e-6)


def test_differences_are_total_variation_distances():
    obs, rng = torch.zeros(20_000, 3), np.random.default_rng(0)
    discrete = ActorCritic(3, 3, Discrete(3), hidden=4)
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.5, 0.3, 0.2]])
    discrete.policy_bias.data = probabilities.log()[:, None]
    wanted = (probabilities[:, None] - probabilities).abs().sum(-1) / 2
    np.testing.assert_allclose(differences(discrete, obs, rng), wanted, atol=0.01)
    gaussian = ActorCritic(2, 3, Box(-1, 1, (2,)), hidden=4)
    gaussian.policy_bias.data[1, 0] = torch.tensor([1.2, 1.6])  # two standard deviations away: 2 Φ(1) − 1
    np.testing.assert_allclose(differences(gaussian, obs, rng), [[0, 0.6827], [0.6827, 0]], atol=0.01)


def test_who_is_dead():
    share = np.array([[0.5, 0.5, 0.0, 0.0], [0.9, 0.0, 0.005, 0.095]])
    report = SubPolicyReport(share, 0.0, np.zeros((4, 4)), None, np.array([5.0, 4, 9, 0.8]), share[0], share, None)
    assert [report.state(k) for k in range(4)] == ["", "", "never chosen", "stands still"]


@pytest.mark.parametrize("env", ["MovementBandits-v0", "TaxiFAMP-v0", "foreign:Listed-v0"])
def test_the_report_as_a_user_types_it(command, tmp_path, env):
    flags = [*TINY, "--env", env, "--num_sub_policies", 2, "--record", 0, "--out", tmp_path / "run"]
    assert command("train.py", *flags)[0] == 0
    code, out, err = command("report.py", tmp_path / "run", "--sub_policies")
    assert code == 0, err
    tasks = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = [line for line in out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2 + 2 + len(tasks["test"]) + len(tasks.get("held_out", []))
    assert ("planned master" in out) == (not env.startswith("foreign")) == ("mean way" in out)
    assert "bits about the task, of 1.00 at most" in out


def test_ways_end_with_the_episode():
    """Taxis that act at random, with their passenger on board: some deliver it soon."""
    cfg = Config(env="TaxiFAMP-v0", T=300, high_len=4, num_sub_policies=2, normalise=False)
    agent = Hierarchy.build(cfg, make_env(cfg, 1))
    _, ways = play_alone(agent, cfg, [48, 51, 54])
    assert ways.shape == (2, 75 * 3 * 10, 2) and 0 < np.isnan(ways).mean() < 1
    data = {"config": dataclasses.replace(cfg, N=2, W=1, test_episodes=2, T=100)}
    data |= {name: getattr(agent, name).state_dict() for name in ("sub_policies", "normaliser")}
    report = report_sub_policies(data, [{"task": task, "return": 0.0, "share": [0.5, 0.5]} for task in (48, 51)])
    assert np.isfinite(report.way).all() and np.isfinite(report.distance).all()


def test_a_single_sub_policy_cannot_be_compared(command, tmp_path):
    flags = [*TINY, "--num_sub_policies", 1, "--record", 0, "--out", tmp_path]
    assert command("train.py", *flags)[0] == 0
    code, _, err = command("report.py", tmp_path, "--sub_policies")
    assert code == 2 and "has too few sub-policies to compare (1)" in err
    code, _, err = command("report.py", tmp_path, "--sub_policies", "--csv", tmp_path / "x.csv")
    assert code == 2 and "--sub_policies prints tables only" in err
