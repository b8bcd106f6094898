import mujoco
import numpy as np
import pytest
import torch

from mlsh.envs.humanoid import CRAWL, WALK, build_humanoid
from test_ant_movement import batched


def simulated(model, state, action):
    """Return qpos, and x of the centre of mass before the last substep, after a control step of plain MuJoCo."""
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = np.split(state[1:], [model.nq])
    data.ctrl[:] = np.clip(0.4 * action, -0.4, 0.4)
    for _ in range(5):
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        com = data.subtree_com[model.body("torso").id, 0].item()
        mujoco.mj_step(model, data)
    return data.qpos.copy(), com


def test_the_model_is_gymnasiums_and_the_ceiling_is_the_originals():
    for course, x in ((False, (-23.5, -0.5)), (True, (0.5, 23.5))):
        model, solid = build_humanoid(course, with_ceiling=False), build_humanoid(course)
        assert (model.nq, model.nv, model.nu, model.opt.timestep) == (24, 23, 17, 0.003)
        assert model.opt.solver == mujoco.mjtSolver.mjSOL_PGS and (model.actuator_ctrlrange == [-0.4, 0.4]).all()
        for m, touches in ((model, False), (solid, True)):
            data = mujoco.MjData(m)
            for place in ((*np.mean([x], 1), 1.6), (x[0] - 0.6, 1.6), (x[1] + 0.6, 1.6)):
                data.qpos[:] = m.qpos0
                data.qpos[0], data.qpos[2] = place
                mujoco.mj_forward(m, data)
                inside = x[0] - 0.3 < place[0] < x[1] + 0.3
                names = {m.geom(int(g)).name for pair in data.contact.geom for g in pair}
                assert ("ceiling" in names) == (touches and inside)
        box = solid.geom("ceiling")
        assert (box.pos - box.size).tolist() == [x[0], -11.5, 1.0] and (box.pos + box.size).tolist() == [
            x[1],
            11.5,
            2.0,
        ]
        assert model.geom("floor").margin == 0 and model.geom("ceiling").rgba[3] == 0 < solid.geom("ceiling").rgba[3]


def test_episodes_follow_the_rules():
    env, draw = batched(4, "HumanoidBandits-v1"), np.random.default_rng(0)
    models = {CRAWL: build_humanoid(), WALK: build_humanoid(with_ceiling=False)}
    upright = np.zeros(4)
    assert env.train_tasks == [0, 1] and [env.task_label(t) for t in (0, 1)] == ["crawl", "walk"]
    env.set_task([CRAWL, WALK])
    obs, _ = env.reset(seed=[1, 2])
    start = env.state[:, 1].copy()
    env.set_task(WALK)  # from the next reset on
    com = None
    for _ in range(60):
        before, action = env.state.copy(), draw.uniform(-1.5, 1.5, (4, 17)).astype(np.float32)
        obs, reward, terminated, truncated, info = env.step(torch.tensor(action))
        after = [simulated(models[CRAWL if e < 2 else WALK], before[e], action[e]) for e in range(4)]
        for e, (qpos, x_com) in enumerate(after):
            wanted = np.concatenate((qpos[:1], qpos[2:], env.state[e, 25:]))
            np.testing.assert_allclose(obs[e], wanted, atol=1e-4, rtol=1e-4)
            stands = qpos[2] >= 1
            upright[e] += stands
            if com is not None:
                v, effort = (x_com - com[e]) / 0.003, 0.1 * ((0.4 * action[e]) ** 2).sum()
                paid = -1.5 * v - effort if e < 2 else (5 + 0.25 * v) * stands - effort
                assert reward[e].item() == pytest.approx(paid, abs=1e-3)
            moved = qpos[0] - start[e]
            assert info["crawled"][e].item() == pytest.approx(-moved if e < 2 else 0, abs=1e-5)
            if e >= 2:
                assert info["walked"][e].item() == pytest.approx(qpos[0], abs=1e-5)
            assert terminated[e].item() == (e >= 2 and not stands)
        assert info["steps_upright"].tolist() == upright.tolist() and "reached" not in info
        com = [x for _, x in after]
    assert not truncated.any() and terminated[2:].all() and (upright < 40).all()  # all have fallen
    env.reset(options={"reset_mask": torch.arange(4) == 0})
    _, reward, _, _, info = env.step(torch.zeros(4, 17))
    assert info["steps_upright"][0] == 1 and reward[0] > 4.9  # it must walk now


def test_on_the_course_one_walks_and_then_crawls_back():
    env = batched(3, "HumanoidCourse-v1")
    assert env.max_episode_steps == 3000 and env.train_tasks == [0]
    env.reset(seed=0)
    env._state[:, 1] = 24.99, 24.99, 10
    env._sensors[:, 0] = env.state[:, 1]
    env._state[1, 1 + 24] = 2  # m/s
    _, reward, terminated, _, info = env.step(torch.zeros(3, 17))
    assert info["reached"].tolist() == [0, 1, 0] and not terminated.any()
    assert reward[1] < -5 < 4 < reward[0]  # 2 m/s forwards, and standing
    turned_at = env.state[1, 1]
    env._state[:, 1] = 24, 24, 10
    env._state[:, 3] = 0.9
    _, reward, terminated, _, info = env.step(torch.zeros(3, 17))
    assert terminated.tolist() == [True, False, True] and reward[0] == 0
    assert info["reached"].tolist() == [0, 1, 0] and info["walked"][1].item() == pytest.approx(turned_at)
    assert info["crawled"].tolist() == pytest.approx([0, turned_at - env.state[1, 1], 0], abs=1e-5)
    env._state[:, 1], env._state[:, 3] = 12, 1.5  # in the ceiling, if there is one
    before = env.state.copy()
    env.step(torch.zeros(3, 17))
    for e in (1, 2):
        same = []
        for with_ceiling in (False, True):
            qpos, _ = simulated(build_humanoid(True, with_ceiling), before[e], np.zeros(17))
            same.append(np.allclose(env.state[e, 1:25], qpos, atol=1e-6))
        assert same == [e == 2, e == 1]
    env.reset(options={"reset_mask": torch.arange(3) == 1})
    assert env.step(torch.zeros(3, 17))[4]["reached"].tolist() == [0, 0, 0]


def test_both_have_the_same_spaces_and_show_x_first():
    bandits, course = batched(2, "HumanoidBandits-v1"), batched(2, "HumanoidCourse-v1")
    for env in (bandits, course):
        obs, _ = env.reset(seed=0)
        assert obs.shape == (2, 46) == (2, *env.single_observation_space.shape)
        env._state[:, 1] += 7
        moved = env.step(torch.zeros(2, 17))[0]
        assert (moved[:, 0] - obs[:, 0] - 7).abs().max() < 0.01 and (moved[:, 1] - 1.4).abs().max() < 0.02
    assert bandits.single_action_space == course.single_action_space


def test_a_walker_that_diverges_is_not_paid_for_the_rest(monkeypatch):
    env = batched(2, "HumanoidBandits-v1")
    env.set_task([CRAWL, WALK])
    env.reset(seed=0)
    simulate = env.simulate

    def explode(*args):
        states, sensors = simulate(*args)
        states[:, -1, 5] = np.nan
        return states, sensors

    monkeypatch.setattr(env, "simulate", explode)
    _, reward, terminated, _, info = env.step(torch.ones(2, 17))
    assert terminated.all() and info["diverged"].all() and reward.tolist() == [0, 0]
