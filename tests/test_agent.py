"""The Python API: sub-policies on NumPy observations, and as the actions of an environment."""

import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete
from gymnasium.utils.env_checker import check_env

import foreign  # noqa: F401, registers environments
import mlsh
from conftest import CODE
from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.errors import UserError
from mlsh.meta_test import load_agent, with_constant_masters
from mlsh.rollout import RolloutSettings, play
from mlsh.runs import checkpoint
from mlsh.slots import draw_seeds, play_episodes

SHIPPED = ["AntBandits-v1", "AntMovement-v1", "MovementBandits-v0"]


def run_of(command, tmp_path, env, *flags):
    """The folder of a short run on an environment of tests/foreign.py."""
    tiny = "-N 2 -W 1 -U 1 --tasks 1 -K 1 -T 5 --high_len 2 --test_episodes 2 --wandb disabled --record 0".split()
    tiny += ["--num_sub_policies", 2] if env.startswith("foreign:") else []
    code, _, err = command("train.py", "--env", env, *tiny, *flags, "--out", tmp_path / "run")
    assert code == 0, err
    return tmp_path / "run"


def by_hand(data, k, obs):
    """The parameters of sub-policy k's distribution at a flat observation, written a second time in NumPy."""
    x = obs.astype(np.float64)
    if data["config"].normalise:
        mean, var = (data["normaliser"][name].numpy() for name in ("mean", "var"))
        x = np.clip((x - mean) / (np.sqrt(var) + 1e-8), -5, 5)
    w = {name: tensor[k].numpy().astype(np.float64) for name, tensor in data["sub_policies"].items()}
    for layer in "12":  # index 0: the policy's network, not the value's
        x = np.tanh(x @ w[f"weight{layer}"][0] + w[f"bias{layer}"][0, 0])
    return x @ w["policy_weight"] + w["policy_bias"][0]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_checkpoints_act_as_computed_by_hand(name):
    assert (CODE / "mlsh" / "pretrained" / f"{name}.pt").stat().st_size <= 400_000
    agent, data = mlsh.load(name), checkpoint.load(name, [Config])
    env = gym.make(f"mlsh:{name}")
    assert agent.observation_space == env.observation_space and agent.action_space == env.action_space
    assert agent.config.env == name and agent.sub_policies.n == 2
    obs = np.stack([env.reset(seed=s)[0] for s in range(5)])
    for k in range(2):
        expected = np.stack([by_hand(data, k, x) for x in obs])
        if isinstance(env.action_space, Discrete):
            expected = expected.argmax(-1)
        actions = agent.act(obs, k, deterministic=True)
        np.testing.assert_allclose(actions, expected, atol=1e-4)
        np.testing.assert_allclose(agent.act(obs[3], k, deterministic=True), expected[3], atol=1e-4)
    mixed = agent.act(obs, np.array([0, 1, 0, 1, 1]), deterministic=True)
    alone = [agent.act(x, k, deterministic=True) for x, k in zip(obs, [0, 1, 0, 1, 1], strict=True)]
    np.testing.assert_allclose(mixed, alone, atol=1e-5)


def test_actions_are_sampled_from_the_policy():
    agent = mlsh.load("AntMovement-v1")
    obs = np.tile(gym.make("mlsh:AntMovement-v1").reset(seed=0)[0], (20_000, 1))
    actions = agent.act(obs, 1)
    std = agent.sub_policies.log_std[1, 0].exp().detach().numpy()
    np.testing.assert_allclose(actions.mean(0), agent.act(obs[0], 1, deterministic=True), atol=5 * std.max() / 141)
    np.testing.assert_allclose(actions.std(0), std, rtol=0.05)
    draws = [agent.act(obs[:3], 0, rng=np.random.default_rng(seed)) for seed in (7, 7, 8)]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])


def test_wrong_arguments_are_refused():
    agent = mlsh.load("MovementBandits-v0")
    with pytest.raises(ValueError, match="sub_policy is 2; use 0 to 1"):
        agent.act(np.zeros(6), 2)
    for shape in ((5,), (3, 5), (2, 3, 6), ()):
        with pytest.raises(ValueError, match="obs has shape"):
            agent.act(np.zeros(shape), 0)
    with pytest.raises(UserError, match="there is no checkpoint at nowhere.*AntBandits-v1"):
        mlsh.load("nowhere")
    with pytest.raises(UserError, match="of a run on MovementBandits-v0 does not fit"):
        mlsh.OptionActions(gym.make("mlsh:MovementBandits4-v0"), "MovementBandits-v0")
    for env in ("MovementBandits4-v0", "AntBandits-v1"):
        with pytest.raises(ValueError, match="the agent's spaces are"):
            mlsh.OptionActions(gym.make(f"mlsh:{env}"), agent)
    with pytest.raises(TypeError, match="wrap each copy"):
        mlsh.VectorOptionActions(gym.make("mlsh:MovementBandits-v0"), agent)
    with pytest.raises(gym.error.ResetNeeded):
        mlsh.OptionActions(gym.make("mlsh:MovementBandits-v0"), agent).step(0)
    with pytest.raises(ValueError, match="high_len is 0"):
        mlsh.OptionActions(gym.make("mlsh:MovementBandits-v0"), agent, high_len=0)


def test_a_flat_policy_has_nothing_to_load(command, tmp_path):
    run = run_of(command, tmp_path, "foreign:Sampled-v0", "--num_sub_policies", 0, "-U", 0)
    with pytest.raises(UserError, match="has no sub-policies to load"):
        mlsh.load(run)


@pytest.mark.parametrize(
    "env",
    [
        "DiscreteObservations-v0",
        "DictObservations-v0",
        "UnsortedDict-v0",
        "Images-v0",
        "BoxActions-v0",
        "HalfBounded-v0",
    ],
)
def test_environments_of_users(command, tmp_path, env):
    """Observations of every kind, single and batched; actions are elements of the environment's own space."""
    agent = mlsh.load(run_of(command, tmp_path, f"foreign:{env}"))
    vector = gym.make_vec(env, num_envs=3, vectorization_mode="sync")
    batch, _ = vector.reset(seed=0)
    actions = agent.act(batch, np.array([0, 1, 0]), deterministic=True)
    vector.step(actions)
    single = gym.make(env)
    obs, _ = single.reset(seed=0)  # as in the first environment of the vector
    action = agent.act(obs, 0, deterministic=True)
    assert single.action_space.contains(action)
    np.testing.assert_allclose(action, actions[0], atol=1e-5)
    data = checkpoint.load(tmp_path / "run", [Config])
    tasks = make_env(data["config"], 1)
    internal = load_agent(data, tasks)
    flat = torch.from_numpy(np.asarray(gym.spaces.flatten(single.observation_space, obs), np.float32))[None]
    params = internal.sub_policies.params(internal.normaliser(flat).expand(2, 1, -1))[0]
    chosen = internal.sub_policies.sample(params, torch.zeros(1, internal.sub_policies.action_size))
    np.testing.assert_allclose(action, tasks._native_actions(chosen.detach().numpy())[0], atol=1e-5)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_options_pass_gymnasiums_checker(name):
    check_env(mlsh.OptionActions(gym.make(f"mlsh:{name}"), name, high_len=3), skip_render_check=True)


def test_options_can_be_made_again_from_their_spec_and_in_vectors():
    env = mlsh.OptionActions(gym.make("mlsh:MovementBandits-v0", task=1), "MovementBandits-v0", high_len=7)
    again = gym.make(env.spec)
    assert again.action_space == Discrete(2) and again.get_wrapper_attr("high_len") == 7
    vector = gym.make_vec(
        "mlsh:MovementBandits-v0",
        num_envs=2,
        vectorization_mode="sync",
        wrappers=[lambda env: mlsh.OptionActions(env, "MovementBandits-v0")],
    )
    vector.reset(seed=0)
    assert vector.step(np.array([0, 1]))[1].shape == (2,)


@pytest.mark.parametrize(("name", "T"), [("MovementBandits-v0", 50), ("AntMovement-v1", 100)])
def test_an_option_does_what_its_sub_policy_does_in_training(name, T):
    """With the same random numbers, the training engine and the wrapper, which share little code, play the same."""
    data = checkpoint.load(name, [Config])
    engine = make_env(data["config"], 1)
    agent = load_agent(data, engine)
    for k in range(2):
        engine.set_task(1)
        constant = with_constant_masters(agent, 1)
        constant = constant._replace(master=constant.master.copies_of([k]))
        settings = RolloutSettings(T=T, high_len=10)
        record, _ = play(play_episodes, engine, constant, [np.random.default_rng(5)], settings)

        env = mlsh.OptionActions(gym.make(f"mlsh:{name}", task=1), name, high_len=10)
        rng = np.random.default_rng(5)
        obs, _ = env.reset(seed=draw_seeds([rng])[0])
        env._rng = rng
        for decision in range(T // 10):
            np.testing.assert_array_equal(obs, record.obs[10 * decision, 0])
            obs, reward, terminated, truncated, info = env.step(k)
            expected = record.reward[10 * decision : 10 * decision + 10, 0].double().sum()
            np.testing.assert_allclose(reward, expected, rtol=1e-6)
            assert info["steps"] == 10 and not terminated
        np.testing.assert_array_equal(obs, record.obs[-1, 0])
        assert truncated == (name == "MovementBandits-v0")


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_an_option_stops_at_the_end_of_the_episode(command, tmp_path, end):
    run = run_of(command, tmp_path, "foreign:Sampled-v0")
    line = gym.make("foreign:Sampled-v0", end=end).unwrapped  # its episodes end after three steps
    env = mlsh.OptionActions(line, run, high_len=2)
    env.reset(seed=0)
    rewards = []
    for taken, over in ((2, False), (1, True)):
        before = len(line.taken)
        _, reward, *ends, info = env.step(0)
        rewards.append(reward)
        assert info["steps"] == taken == len(line.taken) - before
        assert dict(zip(("terminated", "truncated"), ends, strict=True))[end] == over and sum(ends) == over
    x = np.cumsum([line.x - sum(line.taken), *line.taken])[1:]  # the positions of its three steps
    assert rewards == [float((x[:2] > 0).sum()), float(x[2] > 0)]


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_same_seed_gives_the_same_options(deterministic):
    env = gym.make("mlsh:MovementBandits-v0")
    env = mlsh.OptionActions(env, "MovementBandits-v0", deterministic=deterministic)
    plays = []
    for seed in (3, 3, 4):
        env.reset(seed=seed)
        plays.append([env.step(k)[0] for k in (0, 1, 1, 0, 1)])
    assert np.array_equal(plays[0], plays[1]) and not np.array_equal(plays[0], plays[2])


def test_a_shipped_name_is_a_run_for_every_command(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = command("render.py", "MovementBandits-v0", "--task", 1, "--updates", 1, "-N", 2, "-T", 5)
    assert code == 0, err
    flags = "--updates 1 --seeds 1 -N 2 -T 5 --tasks 0".split()
    code, _, err = command("evaluate.py", "MovementBandits-v0", *flags)
    assert code == 0, err
    assert {x.name for x in tmp_path.iterdir()} == {
        ".evaluate.lock",
        "task-1-untrained.gif",
        "task-1-trained.gif",
        "adaptation.csv",
        "adaptation.png",
    }
    assert "MovementBandits-v0" in (tmp_path / "adaptation.csv").read_text()


def test_vectors_of_options_play_as_single_ones(command, tmp_path):
    """In Taxi, episodes end early. Slot by slot, the batch must play what single environments play."""
    run = run_of(command, tmp_path, "TaxiFAMP-v0", "-T", 60)
    agent = mlsh.load(run)
    vector = mlsh.VectorOptionActions(gym.make_vec("mlsh:TaxiFAMP-v0", num_envs=6), agent, high_len=9)
    obs, _ = vector.reset(seed=[0, 1, 2])  # two neighbouring slots per seed
    assert isinstance(obs, np.ndarray) and vector.single_action_space == Discrete(4)
    rng = np.random.default_rng(0)
    ended_early = 0
    for _ in range(400):
        choice = rng.integers(4, size=6)
        obs, rewards, terminated, truncated, infos = vector.step(choice)
        over = terminated | truncated
        assert np.array_equal(infos["_final_obs"], over)
        np.testing.assert_array_equal(infos["final_obs"][~over], obs[~over])
        assert (infos["steps"][~over] == 9).all() and (infos["steps"] >= 1).all()
        # a delivery pays 2 and ends the episode, and every other step costs 0.1
        expected = np.where(terminated, 2 - 0.1 * (infos["steps"] - 1), -0.1 * infos["steps"])
        np.testing.assert_allclose(rewards, expected, atol=1e-5)
        ended_early += (over & (infos["steps"] < 9)).sum()
    assert ended_early

    single = mlsh.OptionActions(
        gym.make("mlsh:TaxiFAMP-v0", max_episode_steps=50), agent, high_len=9, deterministic=True
    )
    alone = mlsh.VectorOptionActions(
        gym.make_vec("mlsh:TaxiFAMP-v0", num_envs=1, max_episode_steps=50), agent, high_len=9, deterministic=True
    )
    for seed in range(5):
        np.testing.assert_array_equal(single.reset(seed=seed)[0], alone.reset(seed=seed)[0][0])
        over = False
        while not over:
            k = rng.integers(4)
            obs, reward, terminated, truncated, info = single.step(k)
            _, rewards, *ends, infos = alone.step(np.array([k]))
            over = terminated or truncated
            np.testing.assert_array_equal(obs, infos["final_obs"][0])
            assert (reward, terminated, truncated) == (pytest.approx(rewards[0]), ends[0][0], ends[1][0])
            assert info["steps"] == infos["steps"][0]


@pytest.mark.parametrize("page", ["README.md", "docs/guide/using-primitives.md"])
def test_the_documented_lines_run(page):
    text = (CODE.parent / page).read_text()
    block = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "mlsh.load" in block)
    names = {}
    exec(block.replace("runs/mb-0", "MovementBandits-v0"), names)
    assert names["env"].action_space.contains(names["action"])
