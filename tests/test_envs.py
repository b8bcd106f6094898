import dataclasses
import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import mlsh  # noqa: F401
from mlsh.config import Config
from mlsh.envs import best_return, env_ids, find_preset, make_env
from mlsh.envs.allwalk import AllwalkVector
from mlsh.envs.mujoco_tasks import MujocoTasks
from mlsh.errors import UserError
from mlsh.sampling import find_task


def batched(env_id="MovementBandits-v0", num_envs=6, **kwargs):
    return gym.make_vec(env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs)


@pytest.mark.parametrize("env_id", env_ids())
@pytest.mark.filterwarnings("ignore:.*Box.*:UserWarning")
def test_single_env_passes_gymnasiums_checker(env_id):
    # MuJoCo's window needs a display; its pictures are tested with the ants
    env = gym.make(f"mlsh:{env_id}").unwrapped
    check_env(env, skip_render_check=issubclass(env.vector_class, MujocoTasks))


@pytest.mark.parametrize("env_id", ["Allwalk-v0", "SwimmerBandits-v1"])
@pytest.mark.parametrize(
    "task",
    [3, "home", [1.0], [1, 2, 3], ["a", "b"], ["1", "2"], [1.0, float("nan")], [[1.0, 2.0]], [[1], 2], None]
    + [[True, False], [10**400, 1]],
)
def test_a_sampled_task_of_another_form_is_refused(env_id, task):
    env = batched(env_id, 2)
    env.set_task([[0.5, 1]])
    with pytest.raises(ValueError, match="is no task of this family; use finite numbers such as"):
        env.set_task([task])
    with pytest.raises(UserError, match="--task: .* is no task of this family"):
        find_task(env, json.dumps(task), "--task")


@pytest.mark.parametrize("task", [[[1.0, 2.0], 3], [1.0, 2.0, 3.0], "home"])
def test_a_family_without_a_task_shape_accepts_any_task(task):
    class Families(AllwalkVector):
        task_shape = None

    Families(1).set_task([task])


def test_a_task_can_be_chosen_from_outside():
    env = gym.make("mlsh:MovementBandits4-v0", task=2)
    assert env.unwrapped.task == 2
    env.reset(seed=0)
    right = env.unwrapped._vector._right_goal[0] / 400
    obs, _ = env.reset(seed=0, options={"task": 3})
    assert env.unwrapped.task == 3
    assert not torch.equal(env.unwrapped._vector._right_goal[0] / 400, right)
    np.testing.assert_allclose(env.unwrapped._vector._right_goal[0] / 400, obs[8:])
    env.reset(seed=0)
    assert env.unwrapped.task == 3  # until another is chosen
    for choose in (lambda: gym.make("mlsh:MovementBandits4-v0", task=4), lambda: env.reset(options={"task": 4})):
        with pytest.raises(ValueError, match="there is no task 4; use one of 0, 1, 2, 3"):
            choose()
    sampled = gym.make("mlsh:Allwalk-v0", task=[0.25, 0.75])
    assert sampled.unwrapped.task == [0.25, 0.75]
    many = batched("MovementBandits-v0", 6)
    many.reset(seed=0, options={"task": [1, 0]})
    assert many.unwrapped.task == [1, 1, 1, 0, 0, 0]
    vector = gym.make_vec("mlsh:MovementBandits-v0", num_envs=2, vectorization_mode="sync", task=1)
    assert vector.get_attr("unwrapped")[1].task == 1


@pytest.mark.parametrize(("env_id", "goals"), [("MovementBandits-v0", 2), ("MovementBandits4-v0", 4)])
def test_movement_bandits_constants(env_id, goals):
    env = batched(env_id, 500)
    assert env.unwrapped.train_tasks == list(range(goals))
    env.set_task(goals - 1)
    obs, _ = env.reset(seed=3)
    assert obs.shape == (500, 2 + 2 * goals) and obs.dtype == torch.float32
    assert (obs[:, :2] == 0.5).all()  # (200, 200) / 400
    drawn = obs[:, 2:]
    assert drawn.min() >= 0 and drawn.max() <= 1
    torch.testing.assert_close(drawn.mean(0), torch.full((2 * goals,), 0.5), atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.var(0), torch.full((2 * goals,), 1 / 12), atol=0.01, rtol=0)

    moves = torch.tensor([[0, 0], [20, 0], [-20, 0], [0, 20], [0, -20]])
    actions = torch.arange(500) % 5
    position = torch.full((500, 2), 200.0)
    for t in range(1, 51):
        obs, reward, terminated, truncated, _ = env.step(actions)
        position += moves[actions]
        torch.testing.assert_close(obs[:, :2], position / 400)  # no bounds
        assert torch.equal(obs[:, 2:], drawn)
        square = ((position - 400 * drawn[:, -2:]) ** 2).sum(1)
        clear = (square - 2500).abs() > 1  # rounding cannot decide
        assert torch.equal(reward[clear], (square < 2500).float()[clear])
        assert not terminated.any() and (truncated == (t == 50)).all()


def test_reward_is_for_strictly_less_than_2500():
    env = batched(num_envs=1)
    env.reset(seed=0)
    for distance, paid in ((50.0, 0), (49.9, 1)):
        env.unwrapped.agent = torch.tensor([[200.0, 200.0]])
        env.unwrapped._right_goal = torch.tensor([[200.0 + distance, 200.0]])
        assert env.step(torch.tensor([0]))[1] == paid


def test_the_best_possible_return():
    """The fewest steps from which a goal is near, for goals on a fine grid."""
    n = 1999
    x = (np.arange(n) + 0.5) * 400 / n - 200  # of a goal, relative to the agent
    steps = np.full((n, n), 99)
    for i, j in np.ndindex(25, 25):
        i, j = i - 12, j - 12
        within = (x[:, None] - 20 * i) ** 2 + (x - 20 * j) ** 2 < 2500
        steps[within] = np.minimum(steps[within], max(1, abs(i) + abs(j)))
    assert best_return("MovementBandits-v0") == pytest.approx((51 - steps).mean(), abs=0.001)


def test_blocks_have_their_own_seed_and_task():
    env = batched()
    env.set_task([0, 1, 1])
    assert env.unwrapped.task == [0, 0, 1, 1, 1, 1]
    obs, _ = env.reset(seed=[5, 6, 7])
    alone = batched(num_envs=2)
    assert torch.equal(alone.reset(seed=6)[0], obs[2:4])
    with pytest.raises(ValueError, match="4 seeds do not divide 6"):
        env.reset(seed=[1, 2, 3, 4])


def test_single_and_batched_are_the_same_dynamics():
    single, batch = gym.make("MovementBandits-v0"), batched(num_envs=1)
    single.unwrapped.set_task(1)
    batch.set_task(1)
    obs, _ = single.reset(seed=11)
    batch.reset(seed=0)
    batch.unwrapped._rngs = [np.random.Generator(np.random.PCG64(11))]
    assert np.array_equal(obs, batch.reset()[0][0].numpy())
    for t in range(50):
        a = single.step(t % 5)
        b = batch.step(torch.tensor([t % 5]))
        assert np.array_equal(a[0], b[0][0].numpy())
        assert a[1:4] == tuple(x.item() for x in b[1:4])
    assert a[3]
    assert isinstance(a[1], float) and isinstance(a[2], bool)


def test_sampled_tasks_cover_the_family():
    env = batched("MovementBandits4-v0", 1).unwrapped
    rng = np.random.default_rng(0)
    assert {env.sample_task(rng) for _ in range(50)} == {0, 1, 2, 3}


BLACK, WHITE, GREY = [0, 0, 0], [255, 255, 255], [153, 153, 153]
SEEN = {"orange": [213, 94, 0], "blue": [0, 114, 178], "yellow": [240, 228, 66], "pink": [204, 121, 167]}


def drawn(goals, task, agent=(200.0, 50.0), env_id="MovementBandits4-v0"):
    """Render an episode with these goals. Returns a function (x, y) -> colour, y upwards."""
    env = batched(env_id, num_envs=1, render_mode="rgb_array")
    env.set_task(task)
    env.reset(seed=1)
    env.unwrapped.goals[0] = torch.tensor(goals)
    env.unwrapped.agent[0] = torch.tensor(agent)
    env.unwrapped._right_goal[0] = env.unwrapped.goals[0, task]
    (frame,) = env.render()
    assert frame.shape == (520, 520, 3) and frame.dtype == np.uint8
    return lambda x, y: frame[460 - y, 60 + x].tolist()


def test_rendering_shows_agent_goals_and_where_it_pays():
    goals = [[100.0, 300.0], [300.0, 300.0]]
    for task in (0, 1):
        at = drawn(goals, task, env_id="MovementBandits-v0")
        assert at(200, 50) == at(209, 50) == BLACK
        assert at(211, 50) == at(200, 350) == WHITE
        assert at(100, 300) == at(119, 300) == SEEN["orange"]
        assert at(300, 300) == at(319, 300) == SEEN["blue"]
        for i, (x, y) in enumerate(([100, 300], [300, 300])):
            edge = [at(x, y + d) for d in (45, 49, 52)] + [at(x - d, y) for d in (45, 49, 52)]
            assert edge == [WHITE, BLACK if i == task else WHITE, WHITE] * 2


def test_goals_at_the_edge_are_drawn_whole():
    at = drawn([[0.0, 0.0], [400.0, 400.0], [0.0, 400.0], [400.0, 0.0]], task=1)
    for (x, y), colour in zip(((0, 0), (400, 400), (0, 400), (400, 0)), SEEN.values(), strict=True):
        assert at(x, y) == at(x - 18, y) == at(x + 18, y) == at(x, y - 18) == at(x, y + 18) == colour
    assert at(400, 449) == at(449, 400) == BLACK
    assert at(200, 0) == at(200, 400) == at(0, 200) == at(400, 200) == GREY
    assert at(200, 5) == at(200, 405) == WHITE


def test_goals_are_named_by_their_colours():
    for env_id, goals in (("MovementBandits-v0", 2), ("MovementBandits4-v0", 4)):
        env = batched(env_id, 1).unwrapped
        assert [env.task_label(task) for task in env.train_tasks] == list(SEEN)[:goals]


def test_goals_look_different_to_the_colour_blind():
    # Machado, Oliveira and Fernandes 2009, on linear RGB: normal vision, then without red, green or blue cones
    eyes = np.array(
        [
            np.eye(3),
            [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
            [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
            [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
        ]
    )
    at = drawn([[50.0, 50.0], [150.0, 50.0], [250.0, 50.0], [350.0, 50.0]], task=0, agent=(200.0, 200.0))
    colours = [at(x, y) for x, y in ((50, 50), (150, 50), (250, 50), (350, 50), (200, 200), (200, 300))]
    seen = (np.array(colours) / 255) ** 2.2 @ eyes.swapaxes(1, 2)  # [eye, colour, 3]
    seen = seen.clip(0, 1) ** (1 / 2.2)
    for i, j in zip(*np.triu_indices(6, 1), strict=True):
        assert (np.linalg.norm(seen[:, i] - seen[:, j], axis=1) > 0.15).all()


def test_human_rendering_opens_a_window_and_closes_it():
    env = gym.make("MovementBandits-v0", render_mode="human")
    env.reset(seed=0)
    env.step(1)
    env.close()


def test_make_env_refuses_what_cannot_be_trained():
    with pytest.raises(UserError, match="MovementBandits-v0"):
        make_env(Config(env="NoSuchThing-v0"), 1)
    with pytest.raises(UserError, match="unknown"):
        make_env(Config(env="no_such_module:Thing-v0"), 1)
    with pytest.raises(UserError, match="no task distribution"):
        make_env(Config(env="CartPole-v1"), 1)


def test_horizon_comes_from_the_configuration():
    env = make_env(Config(T=3), 2)
    env.reset(seed=0)
    ends = [env.step(torch.tensor([0, 0]))[3].tolist() for _ in range(3)]
    assert ends == [[False] * 2, [False] * 2, [True] * 2]


def test_a_family_is_registered_with_its_preset():
    assert set(env_ids()) >= {
        "MovementBandits-v0",
        "AntBandits-v1",
        "KeyDoor-v0",
        "Allwalk-v0",
        "MovementBanditsConv-v0",
    }
    for env_id in env_ids():
        cfg = Config.defaults(env_id)  # fails for an unknown setting
        cfg.validate()
        assert gym.spec(env_id).max_episode_steps >= cfg.T
    assert find_preset("CartPole-v1") == {"T": 500}
    assert find_preset("mlsh:AntBandits-v1") == find_preset("AntBandits-v1") != {}


@pytest.mark.parametrize("env_id", env_ids())
def test_some_slots_are_reset_while_the_others_continue(env_id):
    """The generator of its own block draws the start of an episode; each slot has its own time limit."""
    env, other = (make_env(dataclasses.replace(Config.defaults(env_id), T=10), 6) for _ in range(2))
    for e in (env, other):
        e.set_task([e.sample_task(np.random.default_rng(seed)) for seed in (3, 4)])
        first, _ = e.reset(seed=[3, 4])
        drawn = [torch.as_tensor(e.single_action_space.sample()) for _ in range(6)]
        action = (
            torch.stack(drawn) if drawn[0].dim() else torch.ones(6, dtype=torch.long)
        )  # a move that changes every state
        for _ in range(2):
            before, *_ = e.step(action)
        mask = torch.tensor([False, True, False, False, False, e is env])
        after, _ = e.reset(options={"reset_mask": mask})
        assert torch.equal(after[~mask], before[~mask])
        same = torch.equal(first[0], first[1])  # all episodes of a task begin alike
        begun = [torch.equal(after[k], first[k] if same else before[k]) for k in mask.nonzero()[:, 0]]
        assert all(begun) if same else not any(begun)
        e.started = after[1]
        for _ in range(e.max_episode_steps - 2):
            truncated = e.step(action)[3]
        assert torch.equal(truncated, ~mask)
    assert torch.equal(env.started, other.started)  # whichever slots of the other block are reset
