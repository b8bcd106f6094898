import mujoco
import numpy as np
import pytest
import torch

from mlsh.envs.ant_course import BIG, build_course
from test_ant_movement import batched, simulated
from test_ants import height, inside, touched

# seen from above, metres: left, right, bottom, top
COURSE = [
    (-7, 63, -3.3, -2.7),
    (-7, 63, 39.7, 40.3),
    (-3.3, -2.7, -7, 63),
    (39.7, 40.3, -7, 63),
    (30, 40, 24.7, 25.3),
    (29.7, 30.3, -5, 25),
]


def course(num_envs, **kwargs):
    return batched(num_envs, "AntObstacles-v1", **kwargs)


def test_walls_of_the_course():
    model = build_course()
    data = mujoco.MjData(model)
    data.qpos[:2] = -20, -20
    data.qpos[-2:] = -20, 0  # out of the way
    mujoco.mj_forward(model, data)
    for x in np.arange(-9.75, 66, 0.5):
        for y in np.arange(-9.75, 66, 0.5):
            high = height(model, data, x, y)
            assert (high == pytest.approx(5)) == inside(x, y, COURSE) and (high < 0.31 or inside(x, y, COURSE))
    assert height(model, data, 38, 38) == pytest.approx(0.3)  # the goal's plate
    # the disc within which the enemy sees the ant
    assert height(model, data, 10, 20) > 0.05 and height(model, data, 10, 8.5) == pytest.approx(0, abs=1e-6)
    enemy = model.body("enemy")
    assert enemy.mass == pytest.approx(25_714) and model.geom("enemy").size.tolist() == [3, 3, 3]
    assert data.geom("enemy").xpos.tolist() == [-20, 0, 1]
    assert touched(model, data, (2.9, 0)) == {"enemy"} and touched(model, data, (20, 10)) == set()
    assert touched(model, data, (29, 10)) and touched(model, data, (35, 24))


def test_the_big_course_is_the_originals():
    walls = [(-40, 40, y - 0.3, y + 0.3) for y in (-40, 40)] + [(x - 0.3, x + 0.3, -40, 40) for x in (-40, 40)]
    walls += [(-15.3, -14.7, 3, 37), (-40, -30, 19.7, 20.3), (-30, 10, -20.3, -19.7), (-30, 10, -30.3, -29.7)]
    walls += [(9.7, 10.3, -40, 0)]
    model = build_course(BIG)
    data = mujoco.MjData(model)
    data.qpos[:2] = -20, 10
    data.qpos[-2:] = 100, 0  # out of the way
    mujoco.mj_forward(model, data)
    for x in np.arange(-44.75, 45, 0.5):
        for y in np.arange(-44.75, 45, 0.5):
            if abs(x + 20) > 2 or abs(y - 10) > 2:  # where the ant stands
                high = height(model, data, x, y)
                assert (high == pytest.approx(2)) == inside(x, y, walls) and (high < 0.31 or inside(x, y, walls))
    assert height(model, data, 39.4, -30.4) == pytest.approx(0.3)  # the goal's plate
    env = batched(3, "AntObstaclesBig-v1")
    obs, _ = env.reset(seed=0)
    assert (obs[:, :2] - torch.tensor([-35.0, 15.0])).abs().max() <= 0.1 and env.max_episode_steps == 3000
    assert (env.state[:, 16:18] == [25, 30]).all()
    env._state[:, 1:3] = [35, -30], [35, -29.4], [20, 25]
    for t in range(1, 301):
        before = env.state.copy()
        _, reward, _, _, info = env.step(torch.zeros(3, 8))
        if t == 1:
            assert reward.tolist() == [1, 0, 0] == info["reached"].tolist()
            assert env.state[2, 16:18].tolist() == [24, 29]
        put_upright = (np.abs(env.state[:, 3:16] - before[:, 3:16]).max(1) > 0.01) & (
            env._origin == env.state[:, 1:3]
        ).all(1)
        assert put_upright[:2].all() == (t == 300)


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
            if x**2 + (y - 20) ** 2 < 225:  # the rule looks at the beginning of the next step
                enemy[e] += np.sign(x - enemy[e, 0]), np.sign(y - enemy[e, 1])
                moves[e] += 1
        assert np.array_equal(env.state[:, 16:18], enemy) and (env.state[:, -2:] == 0).all()
    assert (moves[[0, 1, 2, 4]] > 3).all() and moves[3] == 0 and (enemy[3] == [0, 20]).all()
    obs, _ = env.reset(options={"reset_mask": torch.arange(5) == 1})
    assert env.state[1, 16:18].tolist() == [0, 20] and (env.state[0, 16:18] == enemy[0]).all()


def test_the_course_pays_in_its_corner():
    env = course(5)
    env.reset(seed=0)
    env._state[:, 18:] = 0
    places = np.array([(38, 38), (34, 35), (32.9, 36), (32.9, 35.4), (20, 20)])  # 0, 5, 5.48, 5.72 and 25.5 m away
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
