"""Environments that are legal, or nearly: see awkward.py."""

import copy
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import imageio.v3 as iio
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

import mlsh
from conftest import CODE, TINY
from mlsh.config import Config
from mlsh.envs import boundary, env_ids, find_preset, make_env
from mlsh.envs.gymnasium_tasks import ActionMap, uses_mujoco
from mlsh.errors import EnvironmentFailed, UserError
from mlsh.models import Hierarchy
from mlsh.rollout import collect
from mlsh.runs.film import film
from mlsh.runs.metrics import read_metrics
from mlsh.runs.video import video
from mlsh.sampling import Streams


def family(kind, num_envs=2, T=5, **more):
    return make_env(Config(env=f"awkward:{kind}-v0", T=T, env_workers=1), num_envs, **more)


def played(kind, T=5):
    """The observations and rewards of T steps to the right in two slots, [T, 2, 2] and [T, 2], and the last info."""
    env = family(kind, T=T)
    env.set_task([0, 1])
    env.reset(seed=[1, 2])
    steps = [env.step(torch.tensor([2, 2])) for _ in range(T)]
    return torch.stack([step[0] for step in steps]), torch.stack([step[1] for step in steps]), steps[-1][4]


@pytest.mark.parametrize(
    "kind", ["RewardOfOne", "Reward0d", "RewardList", "RewardTensor", "ObservationList", "ObservationRow"]
)
def test_numbers_may_come_in_any_form(kind):
    observations, rewards, _ = played(kind)
    assert rewards.T.tolist() == [[0] * 5, [1] * 5]
    assert observations[:, 0, 0].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("RewardTwo", r"the reward \[.*\]; it must be one number"),
        ("RewardNone", "the reward None; it must be one number"),
        ("ObservationOfOne", r"an observation is array\(.*, of shape \[1\], but its space has shape \[2\]"),
        ("OldReset", r"reset\(\) returned array.*; it must return \(observation, info\)"),
        ("SixValues", r"step\(\) observation, reward, terminated, truncated, info"),
        ("LeavesAtStart", r"at its start, in .*awkward.py:\d+ \(SystemExit"),
        ("Panics", r"at its start, in .*awkward.py:\d+ \(Panic"),
        ("NotThere", "is unknown"),
        ("Agents", "of several agents are not supported"),
        ("CategoryBelow", r"an observation has -1, which is not in its space Discrete\(99\)"),
        ("CategoriesBelow", r"an observation has array\(\[ 0, -1\]\), which is not in its space MultiDiscrete"),
        ("Fractions", "an observation is float64 from 0.5 to 0.5, but its space is uint8"),
        ("Wraps", "an observation is int64 from 300 to 300, but its space is uint8"),
        ("EndsTwice", r"step\(\) returned array\(\[ True, False\]\) for terminated or truncated"),
        ("EndsDict", r"step\(\) returned {'__all__': False} for terminated or truncated"),
        ("EndsText", r"step\(\) returned 'no' for terminated or truncated"),
        ("TaskSet", "its tasks are a set, .* make them a list"),
    ],
)
def test_what_cannot_be_used_is_refused_at_once_with_the_reason(kind, said):
    with pytest.raises(UserError, match=said):
        family(kind)


def test_ends_and_infos_may_come_in_any_form():
    env = family("Arrays")
    env.reset(seed=0)
    ends = [env.step(torch.tensor([2, 2]))[2].tolist() for _ in range(4)]
    assert ends == [[False] * 2, [False] * 2, [True] * 2, [False] * 2]
    *_, info = played("OddInfo")
    assert {name: x.tolist() for name, x in info.items()} == {"3": [4, 4], "success": [1, 1], "one": [1, 1]}


def test_observations_may_be_categories_whole_numbers_of_another_type_or_tensors_with_gradients():
    assert played("Categories")[0].argmax(-1).T.tolist() == [[10, 11, 12, 13, 14]] * 2
    assert played("Whole")[0][:, 0, 0, 0, 0].tolist() == [10, 11, 12, 13, 14]
    assert played("Gradient")[0].unique().tolist() == [1]


def test_tasks_may_hold_numbers_of_numpy():
    number, (half,) = family("NumPyTasks").sample_task(np.random.default_rng(0))
    assert type(number) is int and type(half) is float


def test_text_that_is_no_utf8_ends_no_run(command, tmp_path):
    tiny = [*TINY, "--env", "awkward:Unencodable-v0", "--record", 0]
    code, _, err = command("train.py", *tiny, "--out", tmp_path)
    assert code == 0 and read_metrics(tmp_path)[0]["task"] == "\\udc80", err


def test_a_time_limit_that_is_no_whole_number_is_taken_as_gymnasium_takes_it():
    limits = [find_preset(f"awkward:{name}-v0").get("T") for name in ("Walk", "of/Twenty", "NoLimit", "TextLimit")]
    assert limits == [50, 20, None, None]


def test_only_a_hundred_names_of_infos_become_columns(capsys):
    boundary.say_once.cache_clear()
    *_, info = played("ManyInfos")
    assert len(info) == 100 and info["number 99"].tolist() == [99, 99]
    assert "only the first are logged" in capsys.readouterr().err


def test_a_success_in_an_array_reaches_the_tables(command, tmp_path):
    code, _, err = command("train.py", *TINY, "--env", "awkward:OddInfo-v0", "--record", 0, "--out", tmp_path)
    assert code == 0 and read_metrics(tmp_path)[0]["final_success"] == "1", err


def test_a_reward_that_is_nan_is_reported_at_its_step():
    env = family("RewardNaN", 4)
    agent = Hierarchy.build(Config(groups=2, N=2), env)
    with pytest.raises(FloatingPointError, match="a reward that is not finite at step 3, task"):
        collect(env, agent, Streams(0, range(2))(0, "test"), Config(T=5).rollout)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bounds_near_the_largest_float_are_none(dtype):
    for largest in (np.finfo(dtype).max, np.finfo(dtype).max / 2):
        assert ActionMap(Box(-largest, largest, (2,), dtype))(np.array([[0.5, -7]])).tolist() == [[0.5, -7]]
    mapped = ActionMap(Box(np.array([-2.0, 0]), np.array([2.0, 1]), dtype=np.float64))(np.array([[0.5, -7]]))
    assert mapped.tolist() == [[1, 0]] and mapped.dtype == np.float64


def test_a_single_bound_clips_only_what_lies_beyond_it():
    for low, high, mapped in ((0, np.inf, [0.5, 0]), (5, np.inf, [5.5, 5]), (-np.inf, -5, [-5, -5.5])):
        assert ActionMap(Box(low, high, (1,)))(np.array([[0.5], [-0.5]])).ravel().tolist() == mapped


def test_actions_that_are_integers_are_rounded():
    mapped = ActionMap(Box(-1, 1, (1,), np.int8))(np.array([[0.7], [0.4], [-0.6], [-7]]))
    assert mapped.ravel().tolist() == [1, 0, -1, -1] and mapped.dtype == np.int8


@pytest.mark.parametrize("env_id", ["MovementBandits-v0", "Fourrooms-v0", "TaxiFAMP-v0", "KeyDoor-v0"])
def test_our_discrete_actions_may_be_of_any_integer_type(env_id):
    env = gym.make(f"mlsh:{env_id}")
    results = []
    for kind in (int, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.array, torch.tensor):
        env.reset(seed=0)
        results.append(env.step(kind(1))[0].tolist())
    assert all(result == results[0] for result in results)
    for action in (-1, env.action_space.n, np.int8(-1), 1.0):
        with pytest.raises(ValueError, match="the action is"):
            env.step(action)


def test_the_actions_of_a_batch_may_be_of_any_integer_type():
    for env_id in ("MovementBandits-v0", "Fourrooms-v0"):
        results = []
        for kind in (torch.int64, torch.int8, torch.uint8, torch.int32):
            env = make_env(Config(env=env_id, T=5), 2)
            env.reset(seed=0)
            results.append(env.step(torch.tensor([1, 2], dtype=kind))[0].tolist())
        assert all(result == results[0] for result in results)


@pytest.mark.parametrize(
    "kind", ["Walk", "RGBA", "Grey", "GreyChannel", "ChannelsFirst", "Canvas", "Grows", "TextRate"]
)
def test_pictures_may_come_in_any_form(kind, tmp_path):
    cfg = Config(env=f"awkward:{kind}-v0", T=5, groups=1)
    agent = Hierarchy.build(cfg, make_env(cfg, 1))
    film(cfg, agent, [1], Streams(0, [0])(0, "film"), lambda task: tmp_path / "x.gif")
    frames = iio.imread(tmp_path / "x.gif", index=None)
    assert frames.shape == (6, 40, 60, 3)
    where = [np.flatnonzero(frame[12, :, 0] > 128).min() for frame in frames]
    assert where == [10, 14, 18, 22, 26, 30]  # the square moves by 4 pixels at each step
    assert [int(np.count_nonzero(frame[12, :, 0] > 128)) for frame in frames] == [4] * 6


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("NoModes", "does not support render_mode rgb_array"),
        ("NoPicture", r"render\(\) returned None; it must return a picture"),
        ("FloatPicture", r"render\(\) returned float64 \[40, 60, 3\]"),
        ("RaggedPicture", r"render\(\) returned \[\[1, 2\], \[3\]\]; it must return a picture"),
        ("RenderFails", r"awkward.py:\d+ \(IndexError"),
        ("RenderLeaves", r"awkward.py:\d+ \(SystemExit"),
    ],
)
def test_a_film_that_fails_costs_the_film_and_not_the_run(command, tmp_path, kind, said):
    code, _, err = command("train.py", *TINY, "--env", f"awkward:{kind}-v0", "--record", 1, "--out", tmp_path)
    assert code == 0 and "Traceback" not in err, err
    (line,) = [line for line in err.split("\n") if "no videos" in line]
    assert re.search(said, line), line
    assert list((tmp_path / "videos").iterdir()) == []


FULL_DISK = """
import resource, sys
import numpy as np
from mlsh.errors import UserError
from mlsh.runs.video import video
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
rng = np.random.default_rng(0)
try:
    with video(sys.argv[1], 10) as add:
        for _ in range(60):
            add(rng.integers(255, size=(96, 96, 3), dtype=np.uint8))
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_a_film_that_is_cut_short_is_reported_and_replaces_nothing(tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    path.write_bytes(b"old")
    environment = os.environ | {"PYTHONPATH": str(CODE)}
    run = subprocess.run([sys.executable, "-c", FULL_DISK, path], env=environment, capture_output=True, text=True)
    assert f"cannot write {path}" in run.stdout and "()" not in run.stdout, run.stderr
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", ["CloseFails", "CloseLeaves", "PanicsAtEnd"])
def test_a_close_that_fails_costs_nothing(kind):
    family(kind).close()


def test_an_environment_that_exits_is_an_error(command, tmp_path):
    code, _, err = command("train.py", *TINY, "--env", "awkward:Leaves-v0", "--record", 0, "--out", tmp_path)
    assert code == 2 and "the environment failed at step 5, task" in err and "(SystemExit" in err


def settings():
    of_torch = torch.get_default_dtype(), torch.empty(0).device, torch.is_grad_enabled(), torch.get_num_threads()
    return Path.cwd(), *of_torch, np.geterr(), signal.getsignal(signal.SIGINT)


@pytest.mark.parametrize(
    "kind", "Folder FolderLater Double DoubleLater Device DeviceLater NoGradient Threads Strict Handler".split()
)
def test_an_environment_does_not_change_the_settings_of_the_process(kind):
    before = settings()
    env = family(kind)
    assert settings() == before
    env.reset(seed=0)
    env.step(torch.tensor([2, 2]))
    assert settings() == before
    boundary.chosen.clear()


def test_an_environment_finds_the_folder_again_that_it_has_chosen(tmp_path):
    with boundary.restored_settings():
        os.chdir(tmp_path)
    with boundary.restored_settings():
        assert Path.cwd().samefile(tmp_path)
    boundary.chosen.clear()


@pytest.mark.parametrize("kind", ["FromSpace", "IgnoresGenerator", "AttributeSeed", "WhenMade", "FromTorch"])
def test_what_environments_draw_is_the_same_in_every_run(kind):
    results = []
    for _ in range(2):
        torch.manual_seed(random.SystemRandom().randrange(2**32))  # the state of a new process
        np.random.seed()
        random.seed()
        env = family(kind)
        task = env.sample_task(np.random.default_rng(3))
        results.append([task, *(x.tolist() for x in played(kind)[:2])])
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", ["NormalizeObservation", "NormalizeReward", "IgnoresGenerator", "WhenMade"])
def test_a_continued_run_is_as_an_uninterrupted_one(command, tmp_path, kind):
    tiny = [*TINY, "--env", f"awkward:{kind}-v0", "--record", 0]
    assert command("train.py", *tiny, "--out", tmp_path / "a")[0] == 0
    assert command("train.py", *tiny, "--tasks", 1, "--out", tmp_path / "b")[0] == 0
    code, _, err = command("train.py", "-c", "--tasks", 2, "--out", tmp_path / "b")
    assert code == 0, err
    kept = [[{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(tmp_path / x)] for x in "ab"]
    assert len(kept[0]) == 4 and kept[0] == kept[1]


def test_each_warning_is_shown_once():
    boundary.shown.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            family("Warns", 4)
    assert [str(warning.message) for warning in caught] == ["its own warning"]


def test_a_simulation_that_is_unstable_at_several_times_warns_once(capsys):
    boundary.say_once.cache_clear()
    with boundary.each_warning_once():
        pass
    body = '<body><freejoint/><geom size="1"/></body>'
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{body}</worldbody></mujoco>")
    for time in (1, 2):
        data = mujoco.MjData(model)
        data.time, data.qvel[:] = time, np.nan
        mujoco.mj_step(model, data)
    assert capsys.readouterr().err.count("MuJoCo warns: ") == 1


def test_what_shows_the_task_is_noted_once(capsys):
    boundary.say_once.cache_clear()
    for _ in range(2):
        family("Goal")
    assert capsys.readouterr().err.count("desired_goal, which shows the task") == 1


def test_short_tasks_of_a_list_are_their_own_labels():
    assert [family("Shares").task_label(task) for task in (0, 1)] == ["0.25", "0.5"]


def test_an_environment_that_exists_once_is_refused_with_the_reason():
    family("OneOnly", 1).close()
    with pytest.raises(UserError, match=r"when copy 2 of 2 was made.*there is one already"):
        family("OneOnly", 2)


@pytest.mark.parametrize("env_id", env_ids())
def test_our_environments_can_be_copied_and_pickled(env_id):
    env = gym.make(env_id)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    again = [env, copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    action = env.action_space.sample()
    results = [one.step(action) for one in again]
    assert all(np.array_equal(result[0], results[0][0]) and result[1:3] == results[0][1:3] for result in results)
    for one in again:
        one.close()


def test_modules_that_fail_and_modules_that_are_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.py").write_text("")
    with pytest.raises(UserError, match="here.py is in the current folder: set PYTHONPATH=. to import from it"):
        make_env(Config(env="here:X-v0"), 1)
    monkeypatch.syspath_prepend(tmp_path)
    for name, text, said in (
        ("needs", "\nimport no_such_package", r"needs.py:2 \(ModuleNotFoundError"),
        ("asserts", "\n\nassert 1 > 2, 'not so'", r"asserts.py:3 \(AssertionError\('not so'\)"),
        ("exits", "import sys\nsys.exit(0)", r"exits.py:2 \(SystemExit"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(UserError, match=said):
            make_env(Config(env=f"{name}:X-v0"), 1)


def test_mujoco_is_found_behind_attributes():
    class Inside(gym.Env):
        def __init__(self):
            self.simulation = gym.make("HalfCheetah-v5").unwrapped

    assert uses_mujoco(gym.make("Ant-v5")) and uses_mujoco(Inside()) and not uses_mujoco(gym.make("CartPole-v1"))


def test_an_error_that_an_environment_raises_keeps_its_class_and_its_place():
    try:
        raise AssertionError
    except AssertionError as error:
        said = str(EnvironmentFailed.from_exception("at step 1", error))
    assert "test_boundary.py:" in said and "(AssertionError())" in said
    neighbour = f"{Path(mlsh.__file__).parent}_mine/x.py"  # its path begins as that of mlsh
    try:
        exec(compile("\n1 / 0", neighbour, "exec"))
    except ZeroDivisionError as error:
        assert f"{neighbour}:2" in str(EnvironmentFailed.from_exception("at step 1", error))


def test_a_video_takes_nothing_but_pictures(tmp_path):
    for wrong in (None, np.zeros((2, 2, 2, 3), np.uint8), np.zeros((5, 5, 7), np.uint8), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(UserError, match="it must return a picture"), video(tmp_path / "x.gif", 10) as add:
            add(wrong)
    assert list(tmp_path.iterdir()) == []
