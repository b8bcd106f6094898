"""What the course and the mazes share: the ant, putting it upright, rendering."""

import mujoco
import numpy as np
import pytest
import torch

from mlsh.envs.ant_course import build_course
from mlsh.envs.ant_mazes import build_maze, open_maze
from mlsh.errors import RenderingUnavailable
from test_ant_movement import batched, simulated


def height(model, data, x, y):
    """Return the height of whatever stands at x, y, found by a ray from above."""
    geom = np.zeros(1, np.int32)
    return 20 - mujoco.mj_ray(model, data, np.array((x, y, 20.0)), np.array((0, 0, -1.0)), None, 1, -1, geom)


def touched(model, data, xy):
    """Return the names or numbers of the geoms that the ant touches at a place."""
    data.qpos[:] = model.qpos0
    data.qpos[:2] = xy
    mujoco.mj_forward(model, data)
    root = model.body_rootid[model.geom_bodyid]
    return {model.geom(g).name or int(g) for pair in data.contact.geom for g in pair if root[g] != 1}


def inside(x, y, rectangles):
    return any(left < x < right and bottom < y < top for left, right, bottom, top in rectangles)


def test_all_three_have_the_same_ant_and_spaces():
    envs = [batched(1, env_id) for env_id in ("AntMovement-v1", "AntObstacles-v1", "AntMaze-v1")]
    assert len({str((e.single_observation_space, e.single_action_space)) for e in envs}) == 1
    ant = envs[0].model
    for env in envs[1:]:
        for name in (model.name for model in (ant.geom(g) for g in range(ant.ngeom)) if model.bodyid[0]):
            assert (env.model.geom(name).size == ant.geom(name).size).all()
            assert env.model.geom(name).margin == ant.geom(name).margin
        assert (env.model.body_mass[1:14] == ant.body_mass[1:]).all() and env.model.opt.timestep == 0.005
        assert (env.model.actuator_gear == ant.actuator_gear).all()
        solid = (env.model.body_weldid[env.model.geom_bodyid] == 0) & (env.model.geom_conaffinity > 0)
        assert (env.model.geom_margin[solid] == 0).all()  # contacts begin at 10 mm with any MuJoCo


@pytest.mark.parametrize(("env_id", "start"), [("AntObstacles-v1", (0, 0)), ("AntMaze-v1", (2, 0))])
def test_the_ant_is_put_upright_every_200_steps_where_it_is(env_id, start):
    env = batched(300, env_id)
    obs, _ = env.reset(seed=1)
    noise = obs[:, :2] - torch.tensor(start)
    assert 0.099 < noise.abs().max() <= 0.1 and (obs[:, 2:4] == 0).all() and len(noise.unique(dim=0)) == 300
    env._state[:, 1] += 1
    env._elapsed += torch.tensor([197, 397, 50]).repeat(100)
    model = build_course() if env_id == "AntObstacles-v1" else open_maze(build_maze(), 0)
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


@pytest.mark.parametrize("env_id", ["AntMovement-v1", "AntObstacles-v1", "AntMaze-v1"])
def test_rendering(env_id):
    env = batched(2, env_id, render_mode="rgb_array")
    env.set_task(env.train_tasks[:2])
    env.reset(seed=1)
    try:
        frames = env.render()
    except RenderingUnavailable as error:
        pytest.skip(str(error))
    assert all(frame.shape == (360, 480, 3) and frame.std() > 10 for frame in frames)
    if env_id == "AntMaze-v1":  # the way up is open in task 0, the way down in task 1
        light = [f.astype(int) for f in frames]
        red = [np.argwhere((f[..., 0] > 150) & (f[..., 0] > 2 * f[..., 1]))[:, 0].mean() for f in light]
        green = [np.argwhere((f[..., 1] > 150) & (f[..., 1] > 2 * f[..., 0]))[:, 0].mean() for f in light]
        assert red[0] > red[1] + 5 and green[0] < 100 and green[1] > 260  # of 360 rows
        again = env.render()
        assert all(np.array_equal(a, b) for a, b in zip(frames, again, strict=True))


@pytest.mark.parametrize("env_id", ["AntMovement-v1", "AntMaze-v1"])
def test_a_camera_that_follows_shows_the_ant_in_every_frame(env_id):
    env = batched(1, env_id, render_mode="rgb_array")
    if env_id == "AntMaze-v1":
        env.camera = env.follow_camera
    env.reset(seed=1)
    shown = []
    for _ in range(3):
        try:
            (frame,) = env.render()
        except RenderingUnavailable as error:
            pytest.skip(str(error))
        r, g, b = (frame[130:230, 180:300, i].astype(int) for i in range(3))
        shown.append(((r > g + 30) & (g > b)).sum())  # the ant's own colours, in the middle
        env._state[:, 1] += 5
    assert min(shown) > 300


@pytest.mark.parametrize("env_id", ["AntMaze-v1", "HumanoidBandits-v1", "SwimmerBandits-v1", "WalkerObstacles-v1"])
def test_no_world_hides_a_divergence(env_id):
    env = batched(4, env_id)
    rng = np.random.default_rng(0)
    tasks = env.train_tasks or [env.sample_task(rng) for _ in range(4)]
    env.set_task(tasks[:4])
    env.reset(seed=0)
    env._state[:, -3:] = 1e12
    *_, terminated, _, info = env.step(torch.zeros(4, *env.single_action_space.shape))
    assert info["diverged"].all() and terminated.all()


@pytest.mark.parametrize(
    ("env_id", "tasks", "colour", "where"),
    [("HumanoidBandits-v1", [0, 1], (70, 20, 20), 0), ("WalkerObstacles-v1", [3, 0], (120, 10, 10), 1)],
)
def test_pictures_show_the_world_of_their_task(env_id, tasks, colour, where):
    """A ceiling behind the humanoid that must crawl, and a hurdle before the walker."""
    env = batched(2, env_id, render_mode="rgb_array")
    env.set_task(tasks)
    env.reset(seed=1)
    if where:
        env._state[:, 1] = 4.5
    try:
        with_it, without = (frame.astype(int) for frame in env.render())
    except RenderingUnavailable as error:
        pytest.skip(str(error))
    changed = np.abs(with_it - without).sum(2) > 60
    assert changed.sum() > 500
    assert (np.argwhere(changed)[:, 1].mean() > 240) == bool(where)  # to the right or left of the body
