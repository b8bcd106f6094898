import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

import foreign
from conftest import TINY
from foreign import KINDS, Counted
from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.errors import UserError
from mlsh.models import Hierarchy
from mlsh.rollout import RolloutSettings, collect
from mlsh.runs.metrics import read_metrics
from mlsh.sampling import Streams, balanced_tasks

EXAMPLES = Path(__file__).parent.parent / "examples"


def family(kind, num_envs=4, **more):
    return make_env(Config(env=f"foreign:{kind}-v0", T=5, env_workers=1), num_envs, **more)


BROKEN = foreign.broken.__code__.co_firstlineno + 2
REFUSED = ("Old", "Tasks", "Buttons", "Text", "Mission", "Nested", "Empty", "Faulty", "Broken")
TRAINED = [k for k in KINDS if not k.startswith(REFUSED)]


@pytest.mark.parametrize("env_id", [*TRAINED, "Batch-v0"])
def test_environments_of_users_train(command, tmp_path, env_id):
    code, out, err = command("train.py", *TINY, "--env", f"foreign:{env_id}", "--record", 1, "--out", tmp_path)
    assert code == 0, err
    rows = read_metrics(tmp_path)
    assert len(rows) == 4 and float(rows[0]["train_env_steps"]) == 3 * 2 * 2 * 7
    measured = 3 * 2 * 2 * (3 if "ated-v0" in env_id else 7)  # evaluation episodes end where the environment ends them
    played = 3 if env_id in ("Images-v0", "DiscreteObservations-v0") else 4  # one more is for the normaliser
    assert float(rows[0]["env_steps"]) == played * 2 * 2 * 7 + measured
    films = list((tmp_path / "videos").iterdir())
    assert "no videos" in err if env_id == "NoRendering-v0" else films or "no OpenGL" in err
    assert bool(films) != ("no videos" in err)


def test_films_of_tasks_that_are_no_file_names(command, tmp_path):
    flags = ["--env", "foreign:Named-v0", "--groups", 8, "--seed", 1, "--tasks", 1, "--record", 1]
    code, _, err = command("train.py", *TINY, *flags, "--out", tmp_path / "run")
    assert code == 0, err
    tasks = {row["task"] for row in read_metrics(tmp_path / "run")}
    films = [path.name for path in (tmp_path / "run" / "videos").iterdir()]
    assert len(tasks) == 3 and len(films) == 9 and all(len(name) <= 90 for name in films)
    code, out, err = command("render.py", tmp_path / "run", "--task", '"maps/right"')
    assert code == 0, err
    assert all(Path(line).parent == tmp_path / "run" and Path(line).exists() for line in out.split())


def test_environments_that_cannot_be_trained_are_refused_with_a_remedy(command, tmp_path):
    reasons = {
        "Tasks": "give its class sample_task(rng)",
        "Buttons": "use Discrete or Box",
        "Text": "cannot be made a vector",
        "Mission": "its observation['mission'] is Text(",
        "Nested": "its observation['nested'][1] is <gymnasium.spaces",
        "Empty": "contains no numbers",
        "Faulty-old": "not enough values to unpack",
        **{k.removesuffix("-v0"): f"foreign.py:{BROKEN} (ValueError('operands" for k in KINDS if "Broken" in k},
    }
    for env_id, reason in reasons.items():
        code, _, err = command("train.py", *TINY, "--env", f"foreign:{env_id}-v0", "--out", tmp_path / "x")
        assert code == 2 and reason in err and "Traceback" not in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("kind", "goals"),
    [
        ("Listed", {0: -1, 1: 1}),
        ("Wrapped", {0: -1, 1: 1}),
        ("Sampled", {-1.0: -1, 1.0: 1}),
        ("Original", {0: 0, 1: 1}),
    ],
)
def test_tasks_reach_the_environments(kind, goals):
    env = family(kind)
    tasks = [env.sample_task(np.random.default_rng(i)) for i in range(20)]
    assert set(tasks) == set(goals)
    assert tasks == [env.sample_task(np.random.default_rng(i)) for i in range(20)]
    env.set_task(list(goals))
    env.reset(seed=0)
    have = [one.realgoal if kind == "Original" else one.unwrapped.goal for one in env._copies.task_envs]
    assert have == [goals[task] for task in goals for _ in range(2)]


def test_the_tasks_of_a_list_are_drawn_equally_often():
    assert sorted(balanced_tasks(family("Listed"), Streams(0, range(4)), 0, 4)) == [0, 0, 1, 1]
    assert family("NoGenerator").sample_task(np.random.default_rng(0)) in ([-1.0], [1.0])


def test_spaces():
    env = family("Listed")
    assert env.single_action_space == Discrete(3) and env.single_observation_space.shape == (1,)
    env.reset(seed=0)
    env.step(torch.tensor([0, 1, 2, 0]))
    assert [one.taken[-1] for one in env._copies.task_envs] == [-1, 0, 1, -1]  # its action space starts at -1
    env = family("BoxActions")
    assert env.single_action_space.shape == (6,)
    env.reset(seed=0)
    env.step(torch.tensor([[9.0] * 6, [-9.0] * 6, [0.5] * 6, [0, 0, 0, 1, 1, 1.0]]))  # -1 … 1 is mapped to -0.5 … 0.5
    assert [float(one.taken[-1].mean()) for one in env._copies.task_envs] == [0.5, -0.5, 0.25, 0.25]
    assert env._copies.task_envs[0].taken[-1].shape == (2, 3)
    env = family("HalfBounded", 1)
    env.reset(seed=0)
    for action, taken in (([0, 0, 0], [2, 0, 0]), ([1, 7, -7], [4, 7, -1]), ([-9, -9, 9], [0, -9, 9])):
        env.step(torch.tensor([action], dtype=torch.float32))
        assert env._copies.task_envs[0].taken[-1].tolist() == taken
    assert family("DiscreteObservations").single_observation_space.shape == (5,)
    assert family("DictObservations").single_observation_space.shape == (3,)
    assert isinstance(family("DictObservations").single_observation_space, Box)


@pytest.mark.parametrize(("kind", "shape"), [("Images", (9, 8, 1)), ("Maps", (7, 7, 3))])
def test_images_keep_their_shape_and_type(kind, shape):
    env = family(kind, 2)
    assert env.single_observation_space.shape == shape
    obs, _ = env.reset(seed=0)
    assert obs.shape == (2, *shape) and obs.dtype == torch.uint8
    for _ in range(3):
        new, *_ = env.step(torch.tensor([2, 0]))
    assert (new[0] == obs[0] + 30).all() and (new[1] == obs[1] - 30).all()
    for normalise in (True, False):
        agent = Hierarchy.build(Config(groups=2, normalise=normalise), env)
        assert bool(agent.sub_policies.trunk) == (kind == "Images")  # images this small are treated as vectors
        rollout = collect(env, agent, Streams(0, range(2))(0, "test"), RolloutSettings(T=5, high_len=2))
        assert (
            rollout.obs.dtype == torch.uint8
            and rollout.sub_policies.obs.dtype == torch.uint8
            or kind == "Maps"
            and normalise
        )
        agent.normaliser.update(rollout.obs)


@pytest.mark.parametrize("kind", ["Terminated", "Truncated"])
def test_the_end_of_an_episode_is_reported_and_final(kind):
    env = family(kind)
    env.set_task([1, 0])
    env.reset(seed=[1, 2])
    for t in range(5):
        _, reward, terminated, truncated, _ = env.step(torch.tensor([2, 2, 0, 0]))
        assert reward.tolist() == ([1] * 4 if t < 3 else [0] * 4)
        if t == 2:
            assert terminated.all() == (kind == "Terminated") and truncated.all() == (kind == "Truncated")


def test_tasks_that_are_held_out_are_tested_and_not_trained(command, tmp_path):
    for kind, trained, held_out in (("HoldsOut", {0, 1}, [2, 3]), ("SamplesHeldOut", {-1, 1}, [5, 6])):
        out, env = tmp_path / kind, f"foreign:{kind}-v0"
        code, said, err = command("train.py", *TINY, "--env", env, "--tasks", 4, "--record", 0, "--out", out)
        assert code == 0, err
        assert {float(row["task"]) for row in read_metrics(out)} <= trained
        results = json.loads((out / "results.json").read_text())
        assert {row["task"] for row in results["test"]} == trained
        assert sorted(row["task"] for row in results["held_out"]) == held_out
        assert said.count("held-out task ") == len(held_out)
        code, said, err = command("evaluate.py", out, "--held_out", "--updates", 1, "--seeds", 1, "--out", out / "x")
        assert code == 0 and all(f"task {t}" in said for t in held_out) and "task 1" not in said
    out, few = tmp_path / "HoldsOut", ["--updates", 1, "--seeds", 1, "--out"]
    assert [row["label"] for row in json.loads((out / "results.json").read_text())["test"]] == ["to/-1", "to/1"]
    code, said, _ = command("evaluate.py", out, "--tasks", 2, *few, tmp_path / "y")
    assert code == 0 and "task 2 (to/2)" in said
    code, _, err = command("evaluate.py", out, "--env", "foreign:Listed-v0", "--held_out", *few, tmp_path / "z")
    assert code == 2 and "holds no tasks out; give it test_tasks" in err


def test_a_task_that_does_not_exist_is_refused_at_once():
    family("HoldsOut").set_task([2, 0])
    for env, task in ((family("HoldsOut"), 4), (family("Listed"), -1), (make_env(Config(), 2), 2)):
        with pytest.raises(ValueError, match=f"^there is no task {task}; use one of 0, 1"):
            env.set_task(task)


def test_copies_are_as_many_as_a_rollout_needs_and_bounded_in_tests(command, tmp_path):
    tiny = [*TINY, "--env", "foreign:Counted-v0", "--record", 0, "--test_episodes", 9, "--copies", 5]
    tiny += ["--num_sub_policies", 2]
    results = []
    for out in (tmp_path / "a", tmp_path / "b"):
        Counted.copies = Counted.most = 0
        code, _, err = command("train.py", *tiny, "--out", out)
        assert code == 0, err
        assert Counted.copies == 4 and 4 + 4 <= Counted.most <= 4 + 5  # the copies of training still exist
        results.append(json.loads((out / "results.json").read_text()))
    assert results[0]["test"] == results[1]["test"] and len(results[0]["test"]) == 2
    assert results[0]["test_env_steps"] == 2 * 7 * (2 * 2 + 9 * (1 + 2))
    for flags in ([], ["--eval_episodes", 3]):
        Counted.copies = Counted.most = 0
        few = ["--updates", 1, "--seeds", 3, "--copies", 5, *flags, "--out", tmp_path / f"x{len(flags)}"]
        code, _, err = command("evaluate.py", tmp_path / "a", *few)
        assert code == 0 and Counted.copies == 1 and Counted.most <= 1 + 5, err


def test_info_of_the_last_step_becomes_tensors():
    env = family("ReportsInfo")
    env.reset(seed=0)
    for t in range(5):
        *_, info = env.step(torch.tensor([2, 2, 0, 0]))
        assert bool(info) == (t == 4)
    assert set(info) == {"success", "at", "diverged", "time"}
    assert info["success"].tolist() == [1, 1, 0, 0] and info["time"].isnan().tolist() == [False, False, True, True]
    env.reset(options={"reset_mask": torch.tensor([True, False, False, False])})
    *_, info = env.step(torch.tensor([2, 2, 2, 2]))
    assert info["success"].isnan().tolist() == [True, False, False, False]


def test_info_is_averaged_into_the_tables(command, tmp_path):
    tiny = [*TINY, "--env", "foreign:ReportsInfo-v0", "--record", 0]
    assert command("train.py", *tiny, "--out", tmp_path / "a")[0] == 0
    rows = read_metrics(tmp_path / "a")
    assert all(0 <= float(row["final_success"]) <= 1 and row["diverged"] == "0" for row in rows)
    assert all(1 <= float(row["final_time"] or 7) <= 7 and "final_text" not in row for row in rows)
    for row in json.loads((tmp_path / "a" / "results.json").read_text())["test"]:
        assert 0 <= row["final_success"] <= 1 and (row["final_time"] is None) == (row["final_success"] == 0)
    assert command("train.py", *tiny, "--tasks", 1, "--out", tmp_path / "b")[0] == 0
    code, _, err = command("train.py", "-c", "--tasks", 2, "--out", tmp_path / "b")
    assert code == 0, err
    kept = [[{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(tmp_path / x)] for x in "ab"]
    assert kept[0] == kept[1]


def test_the_same_seed_the_same_start_for_each_block():
    env = family("Sampled")
    first, _ = env.reset(seed=[1, 2])
    again, _ = env.reset(seed=[3, 2])
    assert torch.equal(first[2:], again[2:]) and not torch.equal(first[:2], again[:2])
    assert first.unique().numel() == 4


def test_observations_do_not_change_with_the_next_step():
    env = family("Sampled")
    first, _ = env.reset(seed=0)
    kept = first.clone()
    second, *_ = env.step(torch.tensor([2, 2, 2, 2]))
    assert torch.equal(first, kept) and not torch.equal(second, kept)


def test_an_environment_that_fails_ends_the_run_in_one_line(command, tmp_path):
    tiny = [*TINY, "-W", 1, "-U", 0]
    code, _, err = command("train.py", *tiny, "--env", "foreign:Faulty-raises-v0", "--out", tmp_path / "a")
    assert code == 2 and "Traceback" not in err and "foreign.py" in err
    assert (
        "failed at step 4, task" in err
        and "ZeroDivisionError('its own')" in err
        and "the state before it is saved in" in err
    )
    code, _, err = command("train.py", *tiny, "--env", "foreign:Faulty-nan-v0", "--out", tmp_path / "b")
    assert code == 2 and "Traceback" not in err and "an observation that is not finite at step 2" in err
    code, _, err = command(
        "train.py", *TINY, "--env", "foreign:Faulty-renders-v0", "--record", 1, "--out", tmp_path / "c"
    )
    assert code == 0 and "no videos: " in err and "uint8" in err


def test_environments_that_draw_from_global_generators_are_reproducible(command, tmp_path):
    for out in ("a", "b"):
        assert command("train.py", *TINY, "--env", "foreign:Faulty-global-v0", "--out", tmp_path / out)[0] == 0
    a, b = ([row["trained_reward"] for row in read_metrics(tmp_path / out)] for out in ("a", "b"))
    assert a == b and len(set(a)) == 4


def test_old_gym_through_shimmy(command, tmp_path):
    pytest.importorskip("shimmy", reason="pip install -e .[gym]")
    env = make_env(Config(env="old:Old-v0", T=5), 4)
    tasks = [env.sample_task(np.random.default_rng(i)) for i in range(20)]
    assert set(tasks) == {0, 1} and tasks == [env.sample_task(np.random.default_rng(i)) for i in range(20)]
    env.set_task([0, 1])
    env.reset(seed=[1, 1])
    _, reward, *_ = env.step(torch.tensor([2, 2, 2, 2]))
    assert reward.tolist() == [0, 0, 1, 1]
    for out in ("a", "b"):
        code, _, err = command("train.py", *TINY, "--env", "old:Old-v0", "--out", tmp_path / out)
        assert code == 0, err
    same = [[{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(tmp_path / x)] for x in "ab"]
    assert len(same[0]) == 4 and same[0] == same[1]


def test_an_error_in_a_module_is_reported_with_its_line(command, tmp_path, monkeypatch):
    (tmp_path / "mistaken.py").write_text("import gymnasium\n\ngymnasium.regster('X-v0')\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, _, err = command("train.py", "--env", "mistaken:X-v0")
    assert code == 2 and "mistaken.py:3 (AttributeError" in err and "Traceback" not in err


def test_an_unknown_module_is_a_clear_error():
    with pytest.raises(UserError, match="no_such_module"):
        make_env(Config(env="no_such_module:X-v0"), 1)


def train_example(command, tmp_path, monkeypatch, name, env_id, *flags):
    """Train briefly with the module `name` in examples/. Returns the rows of metrics.csv."""
    monkeypatch.syspath_prepend(EXAMPLES)
    flags = ["--env", f"{name}:{env_id}", "--record", 0, *flags, "--out", tmp_path / "run"]
    code, _, err = command("train.py", *TINY, *flags)
    assert code == 0, err
    return read_metrics(tmp_path / "run")


@pytest.mark.parametrize(("name", "env_id"), [("variants", "Lakes-v0"), ("variants", "Ants-v0"), ("rooms", "Rooms-v0")])
def test_the_adapters_among_the_examples_train(command, tmp_path, monkeypatch, name, env_id):
    if name == "rooms":
        pytest.importorskip("minigrid")
    rows = train_example(command, tmp_path, monkeypatch, name, env_id, "--test_episodes", 2)
    assert len(rows) == 4 and ("final_speed" in rows[0]) == (env_id == "Ants-v0")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert ("held_out" in results) == (env_id != "Ants-v0")


def test_classes_of_the_original_code_train_unchanged(command, tmp_path, monkeypatch):
    """Uses a stand-in that has the old interfaces of the original classes."""
    (tmp_path / "test_envs").mkdir()
    for file, text in (("__init__", REGISTRATION), ("envs", ORIGINAL_CLASS)):
        (tmp_path / "test_envs" / f"{file}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "test_envs", raising=False)  # a test file of that name may have been collected
    before = sys.modules.get("gym")  # tests with Shimmy import it
    rows = train_example(command, tmp_path, monkeypatch, "originals", "Originals-v0")
    assert {row["task"] for row in rows} <= {"0", "1"} and sys.modules.get("gym") is before
    with pytest.raises(UserError, match="No module named 'gym.envs.mujoco'"):
        make_env(Config(env="foreign:OldAnt-v0"), 1)


@pytest.mark.parametrize("kind", ["OldTasks", "OldTasks26", "OldSides"])
def test_old_classes_offer_their_tasks_or_get_them_from_the_adapter(kind):
    env = make_env(Config(env=f"foreign:{kind}-v0", T=5, env_workers=1), 2)
    tasks = [env.sample_task(np.random.default_rng(i)) for i in range(20)]
    assert set(tasks) == {-1, 1} and tasks == [env.sample_task(np.random.default_rng(i)) for i in range(20)]
    env.set_task([1, -1])
    first, _ = env.reset(seed=[1, 1])
    again, _ = env.reset(seed=[1, 1])
    assert torch.equal(first, again)
    for t in range(4):
        _, reward, terminated, truncated, _ = env.step(torch.tensor([2, 2]))
        assert reward.tolist() == ([1, 0] if t < 3 else [0, 0]) and terminated.tolist() == [t == 2] * 2
    assert not truncated.any()


REGISTRATION = """
from gym.envs.registration import register

register(id="Old-v0", entry_point="test_envs.envs:MovementBandits", timestep_limit=50)
"""
ORIGINAL_CLASS = """
import gym
from gym.utils import seeding


class MovementBandits(gym.Env):
    def __init__(self):
        self.action_space, self.observation_space = gym.spaces.Discrete(3), gym.spaces.Box(-9, 9, shape=(1,))
        self._seed()
        self.reset()
        self.randomizeCorrect()

    def randomizeCorrect(self):
        self.realgoal = self.np_random.randint(0, 2)

    def _seed(self, seed=None):
        self.np_random, seed = seeding.np_random(seed)
        return [seed]

    def _reset(self):
        self.x = self.np_random.uniform(-1, 1, size=(1,))
        return self.x

    def _step(self, action):
        self.x = (self.x + action - 1).clip(-9, 9)
        return self.x, float((self.x[0] > 0) == self.realgoal), False, None
"""
