import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch

import mlsh  # noqa: F401
from mlsh.envs.ants import heavy_ant


def batched(num_envs=4, env_id="AntMovement-v1", **kwargs):
    kwargs = {"sim_threads": 1, "vectorization_mode": "vector_entry_point"} | kwargs
    return gym.make_vec(env_id, num_envs=num_envs, **kwargs).unwrapped


def simulated(model, state, action):
    """Return qpos and qvel after a control step of plain MuJoCo."""
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = np.split(state[1:], [model.nq])
    data.ctrl[:] = np.clip(action, -1, 1)
    for _ in range(5):
        mujoco.mj_step(model, data)
    return data.qpos.copy(), data.qvel.copy()


def test_the_ant_is_the_originals_ant_v2():
    model = heavy_ant().compile()
    assert (model.nq, model.nv, model.nu) == (15, 14, 8) and model.opt.timestep == 0.005
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4

    def capsule(length):
        return np.pi * 0.08**2 * length * 2**0.5 + 4 / 3 * np.pi * 0.08**3

    torso = 5 * 4 / 3 * np.pi * 0.5 * 0.25 * 0.25 + 0.01 * 4 / 3 * np.pi * 0.25**3
    masses = np.array([0, torso, *[5 * capsule(0.2), 5 * capsule(0.2), 5 * capsule(0.4)] * 4])
    np.testing.assert_allclose(model.body_mass, 40 * masses / masses.sum(), rtol=1e-9)
    assert model.geom("torso_geom").size.tolist() == [0.5, 0.25, 0.25]
    assert model.geom("head").pos.tolist() == [0.4, 0, 0.25] and model.geom("head").size[0] == 0.25
    hips = [model.body(f"aux_{i}").pos.tolist() for i in range(1, 5)]
    assert hips == [[0.4, 0.2, 0], [-0.2, 0.2, 0], [-0.2, -0.2, 0], [0.4, -0.2, 0]]
    assert model.qpos0.tolist() == [0, 0, 0.75, 1, 0, 0, 0] + [0] * 8
    ant = model.geom_bodyid > 0
    assert ant.sum() == 14 and (model.geom_margin[ant] == 0.01).all() and model.geom("floor").margin == 0
    assert (model.geom_friction[ant] == [1, 0.5, 0.5]).all() and (model.geom_conaffinity[ant] == 0).all()
    assert model.dof_armature.tolist() == model.dof_damping.tolist() == [0] * 6 + [1] * 8
    data = mujoco.MjData(model)
    for height, touches in ((0.2595, True), (0.2605, False)):  # z of the torso, half of whose height is 0.25
        data.qpos[:] = model.qpos0
        data.qpos[2] = height
        mujoco.mj_forward(model, data)
        assert (data.ncon > 0) == touches


@pytest.mark.parametrize(("env_id", "tasks"), [("AntMovement-v1", (0, 1)), ("AntMovement4-v1", (2, 3))])
def test_episodes_follow_the_rules(env_id, tasks):
    env, model, draw = batched(env_id=env_id), heavy_ant().compile(), np.random.default_rng(0)
    env.set_task(list(tasks))
    obs, _ = env.reset(seed=[7, 8])
    env.set_task(1)  # from the next reset on
    sign = 1 if tasks == (0, 1) else -1
    start = obs[:, :2].double().numpy()
    for t in range(1, 211):  # never put upright
        before, action = env.state.copy(), draw.uniform(-1.5, 1.5, (4, 8)).astype(np.float32)
        obs, reward, terminated, truncated, info = env.step(torch.tensor(action))
        for e in range(4) if t < 30 or t > 190 else ():
            qpos, qvel = simulated(model, before[e], action[e])
            wanted = np.concatenate((qpos[:2], qpos[:2] - start[e], qpos[2:], qvel))
            np.testing.assert_allclose(obs[e], wanted, atol=2e-5, rtol=1e-5)
            s, lateral = (0, 1) if e < 2 else (1, 0)
            off = abs(qpos[lateral] - start[e, lateral])
            paid = sign * (qpos[s] - before[e, 1 + s]) / 0.025 - 0.1 * (action[e] ** 2).sum() - 0.5 * off
            assert reward[e].item() == pytest.approx(paid, abs=1e-4)
            assert info["walked"][e].item() == pytest.approx(sign * (qpos[s] - start[e, s]), abs=1e-5)
            assert info["lateral"][e].item() == pytest.approx(off, abs=1e-5)
        assert not terminated.any() and not truncated.any()
    env.reset(options={"reset_mask": torch.arange(4) == 1})
    assert env._episode_task.tolist() == [tasks[0], 1, tasks[1], tasks[1]]


def test_episodes_begin_anywhere_on_the_course():
    env = batched(2000)
    obs, _ = env.reset(seed=3)
    assert obs.shape == (2000, 31) and env.single_observation_space.shape == (31,) and (obs[:, 2:4] == 0).all()
    xy, z, quaternion, joints, qvel = obs.split([4, 1, 4, 8, 14], 1)
    assert -0.1 < xy[:, :2].min() < 0.2 and 39.8 < xy[:, :2].max() < 40.1
    torch.testing.assert_close(xy[:, :2].mean(0), torch.tensor([20.0, 20.0]), atol=1.0, rtol=0)
    assert (z - 0.75).abs().max() <= 0.1 and 0.099 < joints.abs().max() <= 0.1
    torch.testing.assert_close(quaternion.norm(dim=1), torch.ones(2000))
    assert quaternion[:, 1:].abs().max() < 0.112 and quaternion[:, 1:].std() > 0.05
    torch.testing.assert_close(qvel.std(0), torch.full((14,), 0.1), atol=0.01, rtol=0)


def test_an_episode_that_diverges_is_paid_as_if_it_stood_still(monkeypatch):
    env = batched(2, max_episode_steps=10)
    env.set_task([0, 1])
    env.reset(seed=0)
    env._state[:, 1:3] += [[1.0, 2.0]]  # slot 0 is now 2 m off its line, slot 1 is 1 m off
    simulate = env.simulate

    def explode(*args):
        states, sensors = simulate(*args)
        states[0, -1, 5] = np.inf
        return states, sensors

    monkeypatch.setattr(env, "simulate", explode)
    obs, reward, terminated, _, info = env.step(torch.ones(2, 8))
    assert terminated.tolist() == info["diverged"].tolist() == [True, False]
    assert reward[0].item() == pytest.approx(-0.5 * 2 * 10) and info["walked"][0].item() == pytest.approx(1)
