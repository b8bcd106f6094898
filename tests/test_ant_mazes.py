import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch

from mlsh.config import Config
from mlsh.envs.ant_mazes import build_maze, open_maze
from test_ant_movement import batched, simulated
from test_ants import height, inside, touched

# seen from above, metres: left, right, bottom, top
BORDER = [(0, 48, -24.3, -23.7), (0, 48, 23.7, 24.3), (-0.3, 0.3, -24, 24), (47.7, 48.3, -24, 24)]
MAZES = {  # rows of blocks from the top, x for a closed block; goal
    0: (".xx .xx xxx", (8, 24)),
    1: ("xxx .xx .xx", (8, -24)),
    2: ("x.x ..x xxx", (24, 24)),
    3: ("xxx ..x x.x", (24, -24)),
    4: ("xxx ... xxx", (48, 0)),
    5: ("xx. ... xxx", (40, 24)),
    6: ("xxx ... xx.", (40, -24)),
    7: ("..x .xx xxx", (32, 16)),
    8: ("xxx .xx ..x", (32, -16)),
    9: ("... .xx xxx", (40, 24)),
    10: ("xxx .xx ...", (40, -24)),
    11: ("x.. ..x xxx", (40, 24)),
    12: ("xxx ..x x..", (40, -24)),
}


def mazes(num_envs, **kwargs):
    return batched(num_envs, "AntMaze-v1", **kwargs)


def test_the_preset_hides_only_absolute_x_and_y_from_sub_policies():
    blind = Config.defaults("AntMaze-v1").blind
    one = mazes(1)
    one._origin += 3  # otherwise relative and absolute positions would be equal
    qpos, qvel = np.random.default_rng(0).standard_normal((2, 1, 15))
    here, there = (one._observe(qpos + shift, qvel[:, :14]) for shift in (0, np.eye(15)[0] + 7 * np.eye(15)[1]))
    assert (here[:, :blind] == qpos[:, :2]).all() and (there[:, :blind] - here[:, :blind] == (1, 7)).all()


@pytest.mark.parametrize("task", MAZES)
def test_the_mazes(task):
    plan, goal = MAZES[task][0].split(), MAZES[task][1]
    model = open_maze(build_maze(), task)
    data = mujoco.MjData(model)
    blocks = {(i, j): (8 + 16 * j, 16 - 16 * i) for i in range(3) for j in range(3)}
    closed = {ij for ij in blocks if plan[ij[0]][ij[1]] == "x"}
    mujoco.mj_forward(model, data)
    walls = [(x - 7.6, x + 7.6, y - 7.6, y + 7.6) for x, y in (blocks[ij] for ij in closed)]
    for x in np.arange(-1.25, 50, 1.5):
        for y in np.arange(-26.3, 27, 1.5):
            wanted = 10 if inside(x, y, walls) else 5 if inside(x, y, BORDER) else None
            high = height(model, data, x, y)
            assert high == pytest.approx(wanted) if wanted else (high < 1 or (x - 0.4) ** 2 + y**2 < 2)
    for ij, xy in blocks.items():
        assert bool(touched(model, data, xy)) == (ij in closed)
        assert touched(model, data, xy) <= {f"{ij[0]}{ij[1]}"}
    seen, edge = set(), [(1, 0)]  # where the ant starts
    while edge:
        i, j = edge.pop()
        if (i, j) in blocks and (i, j) not in closed | seen:
            seen.add((i, j))
            edge += [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
    assert seen == set(blocks) - closed
    assert any(max(abs(goal[0] - blocks[ij][0]), abs(goal[1] - blocks[ij][1])) <= 8 for ij in seen)


def test_the_mazes_pay_for_coming_nearer():
    env, model, draw = mazes(13), build_maze(), np.random.default_rng(0)
    assert env.train_tasks == list(range(9)) and env.test_tasks == [9, 10, 11, 12]
    rng = np.random.default_rng(0)
    assert {env.sample_task(rng) for _ in range(200)} == set(range(9))
    env.set_task(list(MAZES))
    env.reset(seed=0)
    env.set_task(0)  # takes effect at the next reset
    goals = np.array([goal for _, goal in MAZES.values()])
    env._state[5, 1:3] = 44, 10  # beyond the goal in x
    for t in range(30):
        before, action = env.state.copy(), draw.uniform(-1.5, 1.5, (13, 8)).astype(np.float32)
        if t == 20:
            env._state[:, 1:3] = before[:, 1:3] = goals - 2.5 * np.sign(goals - [30, 0])
        _, reward, terminated, _, info = env.step(torch.tensor(action))
        for e in range(13):
            (x, y), (gx, gy) = before[e, 1:3], goals[e]
            qpos, _ = simulated(open_maze(model, e), before[e], action[e])
            speed = (qpos[:2] - before[e, 1:3]) / 0.025
            paid = speed[0] * (1 if x < gx else -1) + speed[1] * (1 if y < gy else -1) - 0.1 * (action[e] ** 2).sum()
            assert reward[e].item() == pytest.approx(paid, abs=2e-3)
            assert info["distance"][e].item() == pytest.approx(np.hypot(*(qpos[:2] - goals[e])), rel=1e-5)
        assert (info["reached"] == (t >= 20)).all() and not terminated.any()
    env.reset(options={"reset_mask": torch.arange(13) == 4})
    assert env._episode_task.tolist() == [0, 1, 2, 3, 0, *range(5, 13)]
    assert env.step(torch.zeros(13, 8))[4]["reached"].tolist() == [i != 4 for i in range(13)]


def test_results_do_not_depend_on_threads_and_neighbours():
    both, alone = mazes(4, sim_threads=2), mazes(2)
    both.set_task([3, 11])
    both.reset(seed=[1, 2])
    alone.set_task(11)
    alone.reset(seed=2)
    for e in (both, alone):
        e._elapsed += 195
    for _ in range(10):
        here, there = both.step(torch.full((4, 8), 0.3))[0][2:], alone.step(torch.full((2, 8), 0.3))[0]
        assert torch.equal(here, there)


def test_the_single_environment_has_the_tasks():
    single = gym.make("AntMaze-v1").unwrapped
    single.set_task(12)
    single.reset(seed=0)
    assert single._vector._episode_task.tolist() == [12] and single.test_tasks == [9, 10, 11, 12]
