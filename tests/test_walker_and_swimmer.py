import mujoco
import numpy as np
import pytest
import torch

from mlsh.envs.swimmer_bandits import build_swimmer
from mlsh.envs.walker_obstacles import build_walker
from test_ant_movement import batched

TOPS = {0: {}, 1: {6: 0.725}, 2: {12: 0.725}, 3: {6: 0.725, 12: 0.725}, 4: dict.fromkeys((6, 12, 18, 24), 0.625)}


def simulated(model, state, action, steps):
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = np.split(state[1:], [model.nq])
    data.ctrl[:] = np.clip(action, -1, 1)
    for _ in range(steps):
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        com = data.subtree_com.copy()
        mujoco.mj_step(model, data)
    return data, com


@pytest.mark.parametrize("task", TOPS)
def test_hurdles_are_the_originals(task):
    model = build_walker(task)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    geom = np.zeros(1, np.int32)
    for x in np.arange(2.05, 30, 0.1):
        high = 5 - mujoco.mj_ray(model, data, np.array((x, 0.5, 5.0)), np.array((0, 0, -1.0)), None, 1, -1, geom)
        near = [top for place, top in TOPS[task].items() if abs(x - place) < 0.1]
        assert high == pytest.approx(near[0] if near else 0, abs=1e-6)
    for x in (6, 9, 12, 18, 24):
        data.qpos[:] = model.qpos0
        data.qpos[0] = x
        mujoco.mj_forward(model, data)
        touched = {model.geom(int(g)).name for pair in data.contact.geom for g in pair}
        assert any(name.startswith("hurdle") for name in touched) == (x in TOPS[task])


def test_the_walker_is_paid_for_its_way_along_x_and_up():
    env, draw = batched(5, "WalkerObstacles-v1"), np.random.default_rng(0)
    assert env.train_tasks == [0, 1, 2, 3] and env.test_tasks == [4] and env.max_episode_steps == 1000
    assert [env.task_label(t) for t in (0, 3)] == ["no hurdles", "hurdles at 6, 12 m"]
    env.set_task(list(range(5)))
    obs, _ = env.reset(seed=0)
    assert 0 < (obs[:, 1:8]).abs().max() <= 0.005 and (obs[:, 0] - 1.25).abs().max() <= 0.005
    env.set_task(0)  # from the next reset on
    models = [build_walker(task) for task in range(5)]
    for t in range(120):
        if t == 20:
            env._state[:, 1], env._state[:, 10] = 5.7, 15  # about to run into the first hurdle, faster than is shown
        before, action = env.state.copy(), draw.uniform(-1.5, 1.5, (5, 6)).astype(np.float32)
        obs, reward, terminated, _, info = env.step(torch.tensor(action))
        for e in range(5):
            data, _ = simulated(models[e], before[e], action[e], 4)
            wanted = np.concatenate((data.qpos[1:], np.clip(data.qvel, -10, 10)))
            np.testing.assert_allclose(obs[e], wanted, atol=1e-4, rtol=1e-4)
            way = data.qpos[:2] - before[e, 1:3]
            assert reward[e].item() == pytest.approx(way.sum() / 0.008 - 1e-3 * (action[e] ** 2).sum(), abs=2e-3)
            assert info["walked"][e].item() == pytest.approx(data.qpos[0], abs=1e-5)
        assert not terminated.any()
    x = info["walked"]
    assert x[[0, 2]].min() > 6.5 > x[[1, 3, 4]].max()  # those with a hurdle at 6 m were stopped


def test_the_swimmer_is_paid_for_being_near_the_target():
    env, model, draw = batched(4, "SwimmerBandits-v1"), build_swimmer(), np.random.default_rng(0)
    assert (model.nq, model.nv, model.nu, model.opt.timestep) == (7, 7, 2, 0.01)
    rng = np.random.default_rng(1)
    tasks = np.array([env.sample_task(rng) for _ in range(2000)])
    assert tasks.shape == (2000, 2) and 0 <= tasks.min() < 0.02 and 4.98 < tasks.max() <= 5
    env.set_task([[5.0, 1.0], [2.0, 4.0]])
    obs, _ = env.reset(seed=[1, 2])
    assert obs[:, :5].abs().max() <= 0.1 and obs[:, 5:].abs().max() <= 0.005 and env.max_episode_steps == 1000
    env.set_task([[0.0, 0.0]])  # from the next reset on
    target = np.array([(5.09, 0.91, 1.01)] * 2 + [(2.09, 3.91, 1.01)] * 2)
    for _ in range(30):
        before, action = env.state.copy(), draw.uniform(-1.5, 1.5, (4, 2)).astype(np.float32)
        obs, reward, terminated, _, info = env.step(torch.tensor(action))
        for e in range(4):
            data, com = simulated(model, before[e], action[e], 4)
            np.testing.assert_allclose(obs[e], [*data.qpos[:5], *data.qvel[:5]], atol=1e-5, rtol=1e-4)
            away = np.linalg.norm(com[model.body("mid").id] - target[e])
            assert info["distance"][e].item() == pytest.approx(away, abs=1e-5)
            assert reward[e].item() == pytest.approx(-0.001 * (away + 1e-4 * (action[e] ** 2).sum()), abs=1e-7)
        assert not terminated.any() and (env.state[:, 13:] == 0).all()
