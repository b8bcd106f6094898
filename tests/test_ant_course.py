import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch

import mlsh  # noqa: F401
from mlsh.config import Config
from mlsh.envs.ant_obstacles import build_course, build_maze, opened
from mlsh.errors import RenderingUnavailable
from test_ant_movement import batched, simulated

# seen from above, metres: left, right, bottom, top
COURSE = [
    (-7, 63, -3.3, -2.7),
    (-7, 63, 39.7, 40.3),
    (-3.3, -2.7, -7, 63),
    (39.7, 40.3, -7, 63),
    (30, 40, 24.7, 25.3),
    (29.7, 30.3, -5, 25),
]
BORDER = [(0, 48, -24.3, -23.7), (0, 48, 23.7, 24.3), (-0.3, 0.3, -24, 24), (47.7, 48.3, -24, 24)]
MAZES = {  # rows of the blocks from above, closed ones x; goal
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


def course(num_envs, **kwargs):
    return batched(num_envs, "AntObstacles-v1", **kwargs)


def mazes(num_envs, **kwargs):
    return batched(num_envs, "AntMaze-v1", **kwargs)


def height(model, data, x, y):
    """Of what stands there, by a ray from above."""
    geom = np.zeros(1, np.int32)
    return 20 - mujoco.mj_ray(model, data, np.array((x, y, 20.0)), np.array((0, 0, -1.0)), None, 1, -1, geom)


def touched(model, data, xy):
    """Names or numbers of the geoms that the ant touches at a place."""
    data.qpos[:] = model.qpos0
    data.qpos[:2] = xy
    mujoco.mj_forward(model, data)
    root = model.body_rootid[model.geom_bodyid]
    return {model.geom(g).name or int(g) for pair in data.contact.geom for g in pair if root[g] != 1}


def inside(x, y, rectangles):
    return any(left < x < right and bottom < y < top for left, right, bottom, top in rectangles)


def test_in_the_mazes_sub_policies_are_blind_to_absolute_x_and_y_alone():
    blind = Config.defaults("AntMaze-v1").blind
    one = mazes(1)
    one._origin += 3  # else what is relative is the same
    qpos, qvel = np.random.default_rng(0).standard_normal((2, 1, 15))
    here, there = (one._observe(qpos + shift, qvel[:, :14]) for shift in (0, np.eye(15)[0] + 7 * np.eye(15)[1]))
    assert (here[:, :blind] == qpos[:, :2]).all() and (there[:, :blind] - here[:, :blind] == (1, 7)).all()


def test_all_three_have_the_same_ant_and_spaces():
    envs = [batched(1), course(1), mazes(1)]
    assert len({str((e.single_observation_space, e.single_action_space)) for e in envs}) == 1
    ant = envs[0].model
    for env in envs[1:]:
        for name in (model.name for model in (ant.geom(g) for g in range(ant.ngeom)) if model.bodyid[0]):
            assert (env.model.geom(name).size == ant.geom(name).size).all()
            assert env.model.geom(name).margin == ant.geom(name).margin
        assert (env.model.body_mass[1:14] == ant.body_mass[1:]).all() and env.model.opt.timestep == 0.005
        assert (env.model.actuator_gear == ant.actuator_gear).all()
        solid = (env.model.body_weldid[env.model.geom_bodyid] == 0) & (env.model.geom_conaffinity > 0)
        assert (env.model.geom_margin[solid] == 0).all()  # so that 10 mm are left, whatever MuJoCo


def test_walls_of_the_course():
    model = build_course()
    data = mujoco.MjData(model)
    data.qpos[:2] = -20, -20
    data.qpos[-2:] = -20, 0  # away
    mujoco.mj_forward(model, data)
    for x in np.arange(-9.75, 66, 0.5):
        for y in np.arange(-9.75, 66, 0.5):
            high = height(model, data, x, y)
            assert (high == pytest.approx(5)) == inside(x, y, COURSE) and (high < 0.31 or inside(x, y, COURSE))
    assert height(model, data, 38, 38) == pytest.approx(0.3)  # the plate, and where the enemy lives
    assert height(model, data, 10, 20) > 0.05 and height(model, data, 10, 8.5) == pytest.approx(0, abs=1e-6)
    enemy = model.body("enemy")
    assert enemy.mass == pytest.approx(25_714) and model.geom("enemy").size.tolist() == [3, 3, 3]
    assert data.geom("enemy").xpos.tolist() == [-20, 0, 1]
    assert touched(model, data, (2.9, 0)) == {"enemy"} and touched(model, data, (20, 10)) == set()
    assert touched(model, data, (29, 10)) and touched(model, data, (35, 24))


@pytest.mark.parametrize("task", MAZES)
def test_the_mazes(task):
    plan, goal = MAZES[task][0].split(), MAZES[task][1]
    model = opened(build_maze(), task)
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


def test_the_enemy_moves_by_the_rule():
    env, model, draw = course(5), build_course(), torch.Generator().manual_seed(0)
    env.reset(seed=0)
    assert (env.state[:, 16:18] == [0, 20]).all() and (env.state[:, -2:] == 0).all()
    env._state[:, 1:3] = [[10, 20], [-1, 14], [14.6, 23], [0, 0], [10, 9.3]]
    enemy, moves = np.tile([0.0, 20.0], (5, 1)), np.zeros(5)
    for _ in range(40):
        before, action = env.state.copy(), 2 * torch.rand(5, 8, generator=draw) - 1
        env.step(action)
        for e in range(5):
            qpos, qvel = simulated(model, before[e], action[e].numpy())
            np.testing.assert_allclose(env.state[e, 1:16], qpos[:15], atol=1e-6)
            np.testing.assert_allclose(env.state[e, 18:32], qvel[:14], atol=1e-4)
            x, y = qpos[:2]
            if x**2 + (y - 20) ** 2 < 225:  # at the next step's beginning
                enemy[e] += np.sign(x - enemy[e, 0]), np.sign(y - enemy[e, 1])
                moves[e] += 1
        assert np.array_equal(env.state[:, 16:18], enemy) and (env.state[:, -2:] == 0).all()
    assert (moves[[0, 1, 2, 4]] > 3).all() and moves[3] == 0 and (enemy[3] == [0, 20]).all()
    obs, _ = env.reset(options={"reset_mask": torch.arange(5) == 1})
    assert env.state[1, 16:18].tolist() == [0, 20] and (env.state[0, 16:18] == enemy[0]).all()


@pytest.mark.parametrize(("env_id", "start"), [("AntObstacles-v1", (0, 0)), ("AntMaze-v1", (2, 0))])
def test_the_ant_is_put_upright_every_200_steps_where_it_is(env_id, start):
    env = batched(300, env_id)
    obs, _ = env.reset(seed=1)
    noise = obs[:, :2] - torch.tensor(start)
    assert 0.099 < noise.abs().max() <= 0.1 and (obs[:, 2:4] == 0).all() and len(noise.unique(dim=0)) == 300
    env._state[:, 1] += 1
    env._elapsed += torch.tensor([197, 397, 50]).repeat(100)
    model = build_course() if env_id == "AntObstacles-v1" else opened(build_maze(), 0)
    for t in range(1, 6):
        before = env.state.copy()
        obs = env.step(torch.ones(300, 8))[0]
        due = torch.tensor([t == 3, t == 3, False])
        relative = obs[:, 2:4].norm(dim=1)
        assert torch.equal(relative[:3] == 0, due) and ((relative > 0.5) | (relative < 0.2)).all()
        for e in range(3):
            qpos, qvel = simulated(model, before[e], np.ones(8))
            np.testing.assert_allclose(obs[e, :2], qpos[:2], atol=1e-5)
            assert np.allclose(obs[e, 4:17], qpos[2:15], atol=1e-4) != due[e]
            assert np.allclose(obs[e, 17:], qvel[:14], atol=1e-3) != due[e]
        if t == 3:
            fresh = obs[torch.tensor([True, True, False]).repeat(100)]
            upright = torch.tensor([0.75, 1, 0, 0, 0] + [0] * 8)
            assert 0.099 < (fresh[:, 9:17]).abs().max() <= 0.1 and (fresh[:, 4] - 0.75).abs().max() <= 0.1
            assert (fresh[:, 4:17] - upright).abs().max() < 0.112
            torch.testing.assert_close(fresh[:, 5:9].norm(dim=1), torch.ones(200))
            torch.testing.assert_close(fresh[:, 17:].std(0), torch.full((14,), 0.1), atol=0.025, rtol=0)


def test_the_course_pays_in_its_corner():
    env = course(5)
    env.reset(seed=0)
    env._state[:, 18:] = 0
    places = np.array([(38, 38), (34, 35), (32.9, 36), (32.9, 35.4), (20, 20)])  # 0, 5, 5.48 and 5.72 m away
    paid = [1, 1, 1, 0, 0]
    env._state[:, 1:3] = places
    env._state[2, 1] += 0.2
    _, reward, _, _, info = env.step(torch.zeros(5, 8))
    assert reward.tolist() == paid == info["reached"].tolist()
    away = np.hypot(*(env.state[:, 1:3] - 38).T)
    np.testing.assert_allclose(info["distance"], away, rtol=1e-6)
    assert np.array_equal(away**2 < 30, paid) and np.abs(away - [0, 5, 5.28, 5.72, 25.46]).max() < 0.1
    env._state[:, 1:3] = 10, 0
    _, reward, _, _, info = env.step(torch.zeros(5, 8))
    assert reward.tolist() == [0] * 5 and info["reached"].tolist() == paid
    env.reset(options={"reset_mask": torch.arange(5) == 1})
    assert env.step(torch.zeros(5, 8))[4]["reached"].tolist() == [1, 0, 1, 0, 0]


def test_the_mazes_pay_for_coming_nearer():
    env, model, draw = mazes(13), build_maze(), np.random.default_rng(0)
    assert env.train_tasks == list(range(9)) and env.test_tasks == [9, 10, 11, 12]
    rng = np.random.default_rng(0)
    assert {env.sample_task(rng) for _ in range(200)} == set(range(9))
    env.set_task(list(MAZES))
    env.reset(seed=0)
    env.set_task(0)  # from the next reset on
    goals = np.array([goal for _, goal in MAZES.values()])
    env._state[5, 1:3] = 44, 10  # beyond the goal in x
    for t in range(30):
        before, action = env.state.copy(), draw.uniform(-1.5, 1.5, (13, 8)).astype(np.float32)
        if t == 20:
            env._state[:, 1:3] = before[:, 1:3] = goals - 2.5 * np.sign(goals - [30, 0])
        _, reward, terminated, _, info = env.step(torch.tensor(action))
        for e in range(13):
            (x, y), (gx, gy) = before[e, 1:3], goals[e]
            qpos, _ = simulated(opened(model, e), before[e], action[e])
            speed = (qpos[:2] - before[e, 1:3]) / 0.025
            paid = speed[0] * (1 if x < gx else -1) + speed[1] * (1 if y < gy else -1) - 0.1 * (action[e] ** 2).sum()
            assert reward[e].item() == pytest.approx(paid, abs=2e-3)
            assert info["distance"][e].item() == pytest.approx(np.hypot(*(qpos[:2] - goals[e])), rel=1e-5)
        assert (info["reached"] == (t >= 20)).all() and not terminated.any()
    env.reset(options={"reset_mask": torch.arange(13) == 4})
    assert env._playing.tolist() == [0, 1, 2, 3, 0, *range(5, 13)]
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


@pytest.mark.parametrize("env_id", ["AntMovement-v1", "AntObstacles-v1", "AntMaze-v1"])
def test_pictures(env_id):
    env = batched(2, env_id, render_mode="rgb_array")
    env.set_task(env.train_tasks[:2])
    env.reset(seed=1)
    try:
        frames = env.render()
    except RenderingUnavailable as error:
        pytest.skip(str(error))
    assert all(frame.shape == (360, 480, 3) and frame.std() > 10 for frame in frames)
    if env_id == "AntMaze-v1":  # up is open in task 0, down in task 1
        light = [f.astype(int) for f in frames]
        red = [np.argwhere((f[..., 0] > 150) & (f[..., 0] > 2 * f[..., 1]))[:, 0].mean() for f in light]
        green = [np.argwhere((f[..., 1] > 150) & (f[..., 1] > 2 * f[..., 0]))[:, 0].mean() for f in light]
        assert red[0] > red[1] + 5 and green[0] < 100 and green[1] > 260  # of 360 rows
        again = env.render()
        assert all(np.array_equal(a, b) for a, b in zip(frames, again, strict=True))


def test_the_checkers_single_environments_know_their_tasks():
    single = gym.make("AntMaze-v1").unwrapped
    single.set_task(12)
    single.reset(seed=0)
    assert single._vector._playing.tolist() == [12] and single.test_tasks == [9, 10, 11, 12]
