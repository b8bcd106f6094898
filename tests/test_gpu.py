"""What only a GPU can show: no step or minibatch waits for it, and it learns what a CPU learns. `make gpu` runs these.

This file imports nothing from conftest.py, whose packages a machine with a GPU may lack.
"""

from dataclasses import replace

import pytest
import torch

from mlsh.config import Config
from mlsh.envs import env_ids, find_class, make_env
from mlsh.models import FEW, Hierarchy
from mlsh.optim import Adam
from mlsh.ppo import PPOSettings, update
from mlsh.rollout import collect, evaluate
from mlsh.sampling import Streams
from train import train

needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
NEVER_TERMINATE = [id for id in env_ids() if not getattr(find_class(id), "terminates", True)]
QUICK = {"N": 20, "W": 10, "U": 10, "tasks": 4, "fade": 3, "epochs": 5, "sub_minibatches": 15, "compile": "off"}
TOLERANCE = 2.0  # of the mean return in the last two outer iterations; with six seeds on a CPU it is 43.0 to 44.0


def agent_for(cfg, env):
    agent = Hierarchy.build(cfg, env)
    agent.master.reset(Streams(cfg.seed, range(cfg.groups))(0, "master"))
    agent.sub_policies.reset(Streams(cfg.seed, range(cfg.num_sub_policies))(0, "sub-policies"))
    return agent


@pytest.fixture
def waiting_is_an_error():
    """Switch on and off whether an operation that makes the CPU wait for the GPU raises an error."""
    yield lambda on: torch.cuda.set_sync_debug_mode("error" if on else "default")
    torch.cuda.set_sync_debug_mode("default")


@needs_a_gpu
@pytest.mark.parametrize("slots", [4, 2 * FEW])  # all sub-policies at all observations; slots sorted by sub-policy
@pytest.mark.parametrize("env_id", NEVER_TERMINATE)
def test_no_step_but_the_last_waits_for_a_gpu(env_id, slots, waiting_is_an_error):
    cfg = replace(Config.defaults(env_id), T=20, high_len=5, groups=2, explore=0.1, device="cuda")
    env = make_env(cfg, slots)
    agent, steps = agent_for(cfg, env), iter(range(cfg.T + 1))

    def on_step():  # after the reset, and after each step
        waiting_is_an_error(next(steps) < cfg.T - 1)

    collect(env, agent, Streams(1, range(2))(0, "x"), cfg.training_rollout(0), on_step=on_step)


@needs_a_gpu
@pytest.mark.parametrize("policy", ["master", "sub_policies"])
def test_no_minibatch_waits_for_a_gpu(policy, waiting_is_an_error):
    cfg = replace(Config.defaults("MovementBandits-v0"), groups=2, explore=0.1, device="cuda")
    env = make_env(cfg, 2 * cfg.N)
    agent, rngs, minibatches = agent_for(cfg, env), Streams(1, range(2))(0, "x"), 6
    rollout = collect(env, agent, rngs, cfg.training_rollout(0))
    done = iter(range(1, minibatches + 1))

    class WatchedAdam(Adam):
        def step(self, idle=()):
            super().step(idle)
            waiting_is_an_error(next(done) < minibatches)

    learner = getattr(agent, policy)
    optimizer = WatchedAdam(learner, 1e-3, per_member=policy == "sub_policies")
    settings = PPOSettings(minibatches, epochs=1, entropy_coef=0.01, dual_clip=3.0, target_kl=1.0)
    update(learner, optimizer, getattr(rollout, policy), rngs, settings)
    assert next(done, None) is None


class Returns:
    """Stands for the evaluator and the log of `train`, and keeps the mean return of trained masters."""

    def __init__(self, cfg, env, agent, streams):
        self.cfg, self.env, self.agent, self.streams, self.of_trained = cfg, env, agent, streams, []

    def play(self, i, moment):
        if moment == "trained":
            outcome = evaluate(self.env, self.agent, self.streams(i, moment), self.cfg.rollout)
            self.of_trained.append(outcome.episode_return.mean().item())

    def training_iteration_done(self, *args):
        pass

    def outer_iteration_done(self, *args):
        pass


def learned(device, **changes):
    """The mean return of trained masters in each of a few outer iterations of MovementBandits."""
    cfg = replace(Config.defaults("MovementBandits-v0"), **QUICK | changes, device=device)
    env, streams = make_env(cfg, cfg.groups * cfg.N), Streams(cfg.seed, range(cfg.groups))
    agent = agent_for(cfg, env)
    returns = Returns(cfg, env, agent, streams)
    train(cfg, env, agent, Adam(agent.sub_policies, cfg.sub_lr, per_member=True), streams, returns, returns)
    return returns.of_trained


def test_what_the_gpu_is_compared_with_repeats_on_a_cpu():
    """This runs everywhere, so that a change cannot break the comparison unnoticed."""
    changes = {"tasks": 2, "W": 1, "U": 1, "N": 2, "groups": 2}
    returns = learned("cpu", **changes)
    assert len(returns) == 2 and returns == learned("cpu", **changes)


@needs_a_gpu
def test_a_gpu_learns_what_a_cpu_learns():
    on_cpu, on_gpu = learned("cpu"), learned("cuda")
    assert on_gpu[0] == pytest.approx(on_cpu[0], abs=0.3)  # rounding has not had time to matter
    assert sum(on_gpu[-2:]) / 2 == pytest.approx(sum(on_cpu[-2:]) / 2, abs=TOLERANCE)
