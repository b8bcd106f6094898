import runpy

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco import mujoco_rendering

from conftest import CODE
from mlsh.config import Config
from mlsh.envs import make_env, opengl
from mlsh.envs.ant_bandits import build_model
from mlsh.envs.memory import available_cores
from mlsh.envs.mujoco_tasks import MujocoTasks
from mlsh.errors import RenderingUnavailable
from mlsh.models import Hierarchy
from mlsh.rollout import collect
from mlsh.sampling import Streams


def ants(num_envs=4, **kwargs):
    return gym.make_vec(
        "AntBandits-v1", num_envs=num_envs, vectorization_mode="vector_entry_point", **{"sim_threads": 2} | kwargs
    )


def com(model, data, body):
    return data.subtree_com[mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, body)]


def test_model_constants():
    model = build_model()
    assert (model.nq, model.nv, model.nu) == (17, 16, 8)
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4 and model.opt.timestep == 0.01
    joints = [model.joint(model.actuator_trnid[i, 0]).name for i in range(8)]
    assert joints == ["hip_4", "ankle_4", "hip_1", "ankle_1", "hip_2", "ankle_2", "hip_3", "ankle_3"]
    assert (model.actuator_gear[:, 0] == 150).all()
    assert (model.actuator_ctrlrange == [-1, 1]).all()
    assert np.degrees(model.joint("hip_1").range).tolist() == pytest.approx([-30, 30])
    assert np.degrees(model.joint("ankle_1").range).tolist() == pytest.approx([30, 70])
    assert model.joint("target_x").range.tolist() == [-9, 9]
    drawn = [i for i in range(model.ngeom) if model.geom_bodyid[i] == 0 and i != model.geom("floor").id]
    for i in (model.geom("target_geom").id, *drawn):
        assert model.geom_contype[i] == model.geom_conaffinity[i] == 0
    assert len(drawn) == 4 and model.geom("target_geom").size[0] == 0.4


def test_upright_means_that_the_torso_is_not_on_its_back():
    env = ants(50)
    env.reset(seed=0)
    model, draw = build_model(), np.random.default_rng(0)
    env._state[:, 3] = 20  # while it falls, it cannot turn within a step
    env._state[:, 4:8] = draw.normal(size=(50, 4))
    env._state[:, 4:8] /= np.linalg.norm(env._state[:, 4:8], axis=1, keepdims=True)
    *_, info = env.step(torch.zeros(50, 8))
    up = []
    for state in env.state:
        data = mujoco.MjData(model)
        data.qpos[:] = state[1:18]
        mujoco.mj_kinematics(model, data)
        up.append(data.body("torso").xmat[8])  # the z component of its z axis
    assert 15 < sum(x > 0 for x in up) < 35
    assert info["upright"].tolist() == [x > 0 for x in up]


def test_physics_is_the_originals_whatever_mujoco_is_installed():
    model = build_model()
    ant_geoms = [i for i in range(model.ngeom) if model.body_rootid[model.geom_bodyid[i]] == model.body("torso").id]
    assert len(ant_geoms) == 13 and (model.geom_margin[ant_geoms] == 0.01).all() and model.geom("floor").margin == 0
    data = mujoco.MjData(model)
    for height, touches in ((0.2595, True), (0.2605, False)):  # z of the torso, whose radius is 0.25
        data.qpos[:] = model.qpos0
        data.qpos[2] = height
        mujoco.mj_forward(model, data)
        assert (data.ncon > 0) == touches

    def sphere(r):
        return 5 * 4 / 3 * np.pi * r**3

    short, long = (sphere(0.08) + 5 * np.pi * 0.08**2 * length * 2**0.5 for length in (0.2, 0.4))
    legs = [short, short, long] * 4  # exact masses of capsules: 0.911 kg in total instead of 0.879 kg
    np.testing.assert_allclose(model.body_mass, [0, sphere(0.25), *legs, sphere(0.4)], rtol=1e-9)
    assert sum(model.body_mass[1:-1]) == pytest.approx(0.911, abs=5e-4)
    assert model.dof_armature.tolist() == [0] * 6 + [1] * 8 + [0, 0]
    assert model.dof_damping.tolist() == [0] * 6 + [1] * 8 + [0, 0]
    assert (model.geom_friction[ant_geoms] == [1, 0.5, 0.5]).all() and (model.jnt_stiffness == 0).all()
    assert np.allclose(model.body("target").pos, (0.19, -0.19, 0.01)) and np.allclose(model.qpos0[-2:], (0.1, -0.1))


def test_target_stands_where_the_original_has_it():
    model = build_model()
    data = mujoco.MjData(model)
    data.qpos[-2:] = 5, 0
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(com(model, data, "target"), (5.09, -0.09, 1.01), atol=1e-9)


def test_batched_steps_are_plain_mj_steps():
    env = ants()
    env.set_task([0, 1])
    obs, _ = env.reset(seed=[7, 8])
    model = build_model()
    plain = []
    for e in range(4):
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = np.split(env._state[e, 1:], [17])
        plain.append(data)
    draw = np.random.default_rng(0)
    for _ in range(40):
        action = draw.uniform(-2, 2, (4, 8))  # values beyond ±1 are clipped
        obs, reward, terminated, truncated, info = env.step(torch.tensor(action))
        for e, data in enumerate(plain):
            data.ctrl = np.clip(action[e], -1, 1)
            for _ in range(5):
                mujoco.mj_step(model, data)
            expected = np.concatenate((data.qpos[:-2], data.qvel[:-2], [0]))
            np.testing.assert_allclose(obs[e], expected, atol=1e-5)
            sensed = np.linalg.norm(data.sensordata[:3] - data.sensordata[3:])  # 10 ms old, as in the batch
            assert reward[e].item() == pytest.approx(-np.sqrt(sensed) / 3000, rel=1e-5)
            assert info["distance"][e].item() == pytest.approx(sensed, rel=1e-5)
            fresh = mujoco.MjData(model)
            fresh.qpos, fresh.qvel = data.qpos, data.qvel
            mujoco.mj_forward(model, fresh)
            distance = np.linalg.norm(com(model, fresh, "torso") - com(model, fresh, "target"))
            assert sensed == pytest.approx(distance, rel=0.04)
        assert not terminated.any() and not truncated.any() and not info["diverged"].any()


def test_reset_noise_and_targets():
    env = ants(400)
    env.set_task([0, 1])
    obs, _ = env.reset(seed=1)
    assert obs.shape == (400, 30) and (obs[:, 29] == 0).all()
    start = np.array([0, 0, 0.75, 1, 0, 0, 0] + [0] * 8)
    noise = np.abs(obs[:, :15].numpy() - start)
    noise[:, 3:7] = 0.9 * (obs[:, 4:7] / obs[:, 3:4]).abs().amax(1, keepdim=True)  # a ratio, as they are normalised
    assert noise.max() == pytest.approx(0.1, abs=1e-3)
    torch.testing.assert_close(obs[:, 3:7].norm(dim=1), torch.ones(400))
    assert obs[:, 15:29].abs().max().item() == pytest.approx(0.005, abs=1e-4)
    assert env._state[0, 16:18].tolist() == [5, 0] and env._state[399, 16:18].tolist() == [0, 5]
    assert (env._state[:, -2:] == 0).all()


def test_standing_still_returns_minus_0_23():
    env = make_env(Config(env="AntBandits-v1", T=300), 2)
    env.set_task([0, 1])
    env.reset(seed=0)
    total = sum(env.step(torch.zeros(2, 8))[1] for _ in range(300))
    assert total.tolist() == pytest.approx([-0.23, -0.23], abs=0.01)


def test_result_does_not_depend_on_the_number_of_threads():
    results = []
    for threads in (1, 2):
        env = ants(6, sim_threads=threads)
        env.reset(seed=3)
        for i in range(20):
            obs = env.step(torch.full((6, 8), 0.1 * i - 1))[0]
        results.append(obs)
    assert torch.equal(*results)


def test_sim_threads_is_a_flag():
    for flag, threads in ((1, 1), (2, 2), (0, available_cores())):
        env = make_env(Config(env="AntBandits-v1", sim_threads=flag), 64)
        assert len(env._data) == threads
        env.close()


def test_the_benchmark_repeats_the_rollouts_states():
    against = runpy.run_path(str(CODE / "benchmark.py"))["compare_with_simulator"]
    cfg = Config(env="AntBandits-v1", T=5, N=3, groups=2, high_len=5, sim_threads=1)
    repeated, simulate = [], MujocoTasks.simulate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            MujocoTasks, "simulate", lambda *args: repeated.append(simulate(*args)[0][:, -1]) or simulate(*args)
        )
        spent = against(cfg)
    assert len(repeated) == 10 and all(np.array_equal(a, b) for a, b in zip(repeated[:5], repeated[5:], strict=True))
    assert all(seconds > 0 for seconds in spent)


def test_torch_leaves_the_cores_to_the_simulator_while_it_steps():
    env = make_env(Config(env="AntBandits-v1", T=2, groups=1), 2)
    agent = Hierarchy.build(Config(groups=1), env)
    seen, before = [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        collect(
            env,
            agent,
            Streams(0, [0])(0, "x"),
            Config(T=2).rollout,
            on_step=lambda: seen.append(torch.get_num_threads()),
        )
        assert seen == [1, 1, 1] and torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError):
            collect(env, agent, Streams(0, [0])(0, "x"), Config(T=2).rollout, on_step=lambda: 1 / 0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("steps_before", [0, 1])
def test_a_diverged_episode_ends_and_stays_finite(tmp_path, monkeypatch, steps_before):
    """Its last reward covers all steps that are missing, ten or nine, as if the ant stood still where it was."""
    monkeypatch.chdir(tmp_path)
    env = ants(3, max_episode_steps=10)
    env.set_task([0, 1, 0])
    last_obs, _ = env.reset(seed=0)
    model, last_reward = build_model(), []
    for state in env._state:
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = np.split(state[1:], [17])
        mujoco.mj_forward(model, data)
        last_reward.append(-np.sqrt(np.linalg.norm(com(model, data, "torso") - com(model, data, "target"))) / 3000)
    for _ in range(steps_before):
        last_obs, last_reward, *_ = env.step(torch.zeros(3, 8))
    step = env._pool.rollout

    def explode(*args):
        states, sensors = step(*args)
        states[0, -1, 20], states[1, -1, 20] = np.nan, 1.1e3
        sensors[:2] = np.nan
        return states, sensors

    monkeypatch.setattr(env._pool, "rollout", explode)
    obs, reward, terminated, _, info = env.step(torch.zeros(3, 8))
    assert info["distance"].isfinite().all()
    assert info["diverged"].tolist() == terminated.tolist() == [True, True, False]
    assert torch.equal(obs[:2], last_obs[:2]) and not torch.equal(obs[2], last_obs[2])
    torch.testing.assert_close(reward[:2], (10 - steps_before) * torch.as_tensor(last_reward, dtype=torch.float32)[:2])


def test_mujocos_own_warnings_leave_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = ants(2)
    env.reset(seed=0)
    env._state[0, 20] = np.nan
    assert env.step(torch.zeros(2, 8))[4]["diverged"].tolist() == [True, False]
    assert list(tmp_path.iterdir()) == []


def test_a_window_without_a_display_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(opengl, "can_render", lambda name: False)
    env = ants(1, render_mode="human")
    env.reset(seed=0)
    with pytest.raises(RenderingUnavailable, match="no display"):
        env.render()


def test_the_window_is_large_and_has_no_menu(monkeypatch):
    class Window:
        """Stands in for Gymnasium's window, which needs a display."""

        def __init__(self, model, data, width, height, *args):
            self.size, self.cam, self.seen = (width, height), mujoco.MjvCamera(), []

        def make_context_current(self): ...

        def render(self):
            self.seen.append(self._hide_menu)

        def close(self): ...

    monkeypatch.setattr(opengl, "can_render", lambda name: name == "glfw")
    monkeypatch.setattr(mujoco_rendering, "WindowViewer", Window)
    env = ants(1, render_mode="human")
    env.reset(seed=0)
    env.render()
    window = env.unwrapped._renderer.viewer
    assert window.size == (960, 720) and window.seen == [True]
    window._hide_menu = False  # as key H does
    env.render()
    assert window.seen == [True, False]
    env.close()


def test_rendering_or_a_clear_error():
    env = ants(2, render_mode="rgb_array")
    env.set_task([0, 1])
    env.reset(seed=0)
    try:
        frames = env.render()
    except RenderingUnavailable as error:
        assert "libegl1" in str(error)
        pytest.skip("no OpenGL here")
    assert frames[0].shape == (360, 480, 3) and frames[0].std() > 10
    red = [np.argwhere((f[..., 0] > 150) & (f[..., 1] < 90) & (f[..., 2] < 90)).mean(0) for f in frames]
    assert red[0][1] > red[1][1] + 20 and red[0][0] > red[1][0] + 20  # right: further right; up: higher
