import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from mlsh.envs import make_env
from mlsh.envs.base import VectorTasks
from mlsh.envs.pool import EnvPool
from mlsh.meta_test import Anchor, MasterTraining, adapt, adapt_in_chunks, evaluate_each_sub_policy, final_test
from mlsh.models import Hierarchy
from mlsh.rollout import collect
from mlsh.sampling import Streams


def agent_for(cfg):
    agent = Hierarchy.build(cfg, make_env(cfg, 1))
    agent.master.reset(Streams(cfg.seed, range(cfg.groups))(0, "master"))
    agent.sub_policies.reset(Streams(cfg.seed, range(cfg.num_sub_policies))(0, "subs"))
    agent.normaliser.update(torch.randn(50, 6))
    return agent


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_adapting_trains_new_masters_and_nothing_else(cfg):
    agent = agent_for(cfg)
    before = [weights(part) for part in agent]
    tasks = [0, 1, 1]
    env = make_env(cfg, cfg.N * 3)
    fresh, steps = adapt(agent, env, tasks, cfg, 0)
    assert steps == 0
    trained, steps = adapt(agent, env, tasks, cfg, 2)
    assert steps == 2 * 3 * cfg.N * cfg.T
    assert all(same(old, weights(part)) for old, part in zip(before, agent, strict=True))
    assert trained.sub_policies is agent.sub_policies and trained.master.n == 3
    assert not same(weights(trained.master), weights(fresh.master))
    again, _ = adapt(agent, env, tasks, cfg, 2)
    assert same(weights(trained.master), weights(again.master))


def test_final_test_reports_each_task(cfg):
    env = make_env(cfg, 1)
    steps, rows = final_test(agent_for(cfg), env, cfg).values()
    assert steps == 2 * cfg.T * (cfg.W * cfg.N + cfg.test_episodes * (1 + cfg.num_sub_policies))
    assert [row["task"] for row in rows] == [0, 1] and [row["label"] for row in rows] == ["orange", "blue"]
    for row in rows:
        assert 0 <= row["return"] <= cfg.T and row["standard_error"] >= 0
        assert len(row["sub_policy_returns"]) == 2
        assert len(row["share"]) == 2 and abs(sum(row["share"]) - 1) < 1e-6
    cfg.W, cfg.U = 0, 3  # without a warm-up the new master gets as many updates as it had in training
    steps, _ = final_test(agent_for(cfg), env, cfg).values()
    assert steps == 2 * cfg.T * (3 * cfg.N + cfg.test_episodes * (1 + cfg.num_sub_policies))


def test_the_normaliser_of_flat_policies_learns_in_each_chunk_of_tasks_alone(cfg):
    """A task that is adapted to in a later chunk ends as if it had been the only one."""
    cfg.num_sub_policies, cfg.U, cfg.normalise = 0, 0, True
    agent = Hierarchy.build(cfg, make_env(cfg, 1))
    agent.normaliser.update(torch.randn(50, 6))
    before = weights(agent.normaliser)
    with EnvPool(cfg, "chunks", 1) as pool:
        pool.slots_at_once = cfg.N  # one task at a time
        adapted, _ = adapt_in_chunks(agent, [0, 1], pool, 2)
    alone, _ = adapt(agent, make_env(cfg, cfg.N), [1], cfg, 2, range(1, 2))
    assert [list(numbers) for numbers, _ in adapted] == [[0], [1]]
    assert same(weights(adapted[1][1].normaliser), weights(alone.normaliser))
    assert same(weights(adapted[1][1].master), weights(alone.master))
    assert not same(before, weights(alone.normaliser)) and same(before, weights(agent.normaliser))


class Guess(VectorTasks):
    """Pays 1 a step for the action whose number is the task's."""

    train_tasks = [0, 1, 2]

    def __init__(self, num_envs):
        self.single_observation_space = Box(-1, 1, (2,), np.float32)
        self.single_action_space = Discrete(3)
        super().__init__(num_envs, None, None, "cpu")

    def _reset(self, which):
        return torch.zeros(self.num_envs, 2)

    def _step(self, actions):
        paid = (actions == torch.tensor(self.task)).float()
        return torch.zeros(self.num_envs, 2), paid, torch.zeros(self.num_envs, dtype=torch.bool), {}


def test_a_new_master_finds_the_sub_policy_of_each_task(cfg):
    """Sub-policy k always takes action k; ten updates teach the master of task k to run k."""
    cfg.num_sub_policies, cfg.N, cfg.epochs = 3, 20, 10
    env = Guess(60)
    agent = Hierarchy.build(cfg, env)
    agent.sub_policies.policy_bias.data[:, 0] = 1e3 * torch.eye(3)
    trained, _ = adapt(agent, env, [0, 1, 2], cfg, 10)
    played = collect(env, trained, Streams(0, range(3))(0, "test"), cfg.rollout)
    torch.testing.assert_close(played.outcome.share, torch.eye(3), atol=0.05, rtol=0)
    assert played.outcome.episode_return.mean() > 0.95 * cfg.T


def test_each_sub_policy_is_evaluated_alone(cfg):
    agent = agent_for(cfg)
    with torch.no_grad():  # sub-policy 0 stays, sub-policy 1 walks away to the right
        for k, action in enumerate((0, 1)):
            agent.sub_policies.policy_weight[k] = 0
            agent.sub_policies.policy_bias[k, 0, action] = 1e3
    cfg.T, cfg.test_episodes = 50, 400
    with EnvPool(cfg, "alone", 1) as pool:
        returns, steps = evaluate_each_sub_policy(agent, [0, 1], pool)
    assert steps == 2 * 2 * 400 * 50
    near_the_start = 50 * torch.pi * 2500 / 400**2  # the goal is within 50 pixels of the start
    for stays, walks in returns:
        assert abs(stays - near_the_start) < 1.5 and 0 < walks < stays


def test_copies_of_sub_policies_stay_near_them_as_far_as_they_are_told(cfg):
    agent = agent_for(cfg)
    cfg.master_minibatch = 10
    before, obs, far = weights(agent.sub_policies), torch.randn(100, 6), {}
    for coefficient in (0.0, 1.0, 30.0):
        master = agent.master.copies_of([0, 0])
        own = agent._replace(master=master, sub_policies=agent.sub_policies.copies_of([0, 1, 0, 1]))
        env = make_env(cfg, cfg.N * 2)
        training = MasterTraining(own, env, [0, 1], cfg, anchor=Anchor(agent.sub_policies, coefficient))
        for _ in range(5):
            training.learn(training.collect())
        shared = agent.sub_policies.params(obs.expand(2, -1, -1)).softmax(-1).repeat(2, 1, 1)
        moved = own.sub_policies.params(obs.expand(4, -1, -1)).softmax(-1)
        far[coefficient] = (moved * (moved / shared).log()).sum(-1).mean(1)
        assert same(before, weights(agent.sub_policies))
    assert (far[0.0] > 1e-4).all() and not torch.equal(far[0.0][:2], far[0.0][2:])  # each learns its own task
    assert far[30.0].mean() < far[1.0].mean() / 2 and far[1.0].mean() < far[0.0].mean()
