"""Algorithm 1 of "Meta Learning Shared Hierarchies" (Frans et al. 2018): python train.py --help"""

from mlsh import parallel
from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.errors import run_command
from mlsh.meta_test import final_test
from mlsh.models import Hierarchy
from mlsh.ppo import Adam, update
from mlsh.rollout import collect, settle
from mlsh.runs.film import Look
from mlsh.runs.log import Logger
from mlsh.runs.run import Run
from mlsh.sampling import Streams, balanced_tasks


def train(cfg, env, agent, low_optimizer, streams, look, log, start=0):
    """The outer iterations from `start` on. `env`, `agent` and `streams` have the task groups of this process."""
    for i in range(start, cfg.tasks):
        tasks = balanced_tasks(env, streams, i, cfg.groups)
        env.set_task(tasks)
        agent.master.reset(streams(i, "master"))  # a new θ
        master_optimizer = Adam(agent.master, cfg.master_lr)
        low_optimizer.param_groups[0]["lr"] = cfg.low_rate(i)

        look(i, "pretrain")
        for w in range(cfg.W):  # warm-up: only θ learns
            rngs = streams(i, f"warmup {w}")
            rollout = collect(env, agent, rngs, low=False, **cfg.training_rollout(i))
            stats = update(agent.master, master_optimizer, rollout.master, rngs, **cfg.master_ppo)
            if not cfg.num_sub_policies:  # flat policies have no joint iterations
                agent.normaliser.update(rollout.obs)
            log.step(i, "warm-up", rollout, master=stats)
        look(i, "warmup")
        for u in range(cfg.U):  # joint: θ and φ learn
            rngs = streams(i, f"joint {u}")
            rollout = collect(env, agent, rngs, **cfg.training_rollout(i))
            stats = update(agent.master, master_optimizer, rollout.master, rngs, **cfg.master_ppo)
            low_stats = parallel.update(agent.sub_policies, low_optimizer, rollout.low, rngs, **cfg.low_ppo(i))
            agent.normaliser.update(rollout.obs)
            log.step(i, "joint", rollout, master=stats, low=low_stats)
        look(i, "afterjoint")
        log.task_done(i, tasks)


def main():
    run = Run(Config)
    cfg, streams = run.cfg, Streams(run.cfg.seed, run.mine)
    env = make_env(cfg, len(run.mine) * cfg.N)
    agent = Hierarchy.build(cfg, env, len(run.mine), parallel.gather)
    agent.sub_policies.reset(Streams(cfg.seed, range(cfg.num_sub_policies))(0, "sub-policies"))
    low_optimizer = Adam(agent.sub_policies, cfg.sub_lr, apart=True)
    with run.alive(
        Logger, sub_policies=agent.sub_policies, normaliser=agent.normaliser, optimizer=low_optimizer
    ) as log:
        look = Look(cfg, env, agent, streams, log)
        if not run.progress["iteration"]:
            env.set_task(balanced_tasks(env, streams, 0, cfg.groups))
            agent.master.reset(streams(0, "master"))
            log.observed(settle(env, agent, streams(0, "normaliser"), **cfg.training_rollout(0)))
        train(cfg, env, agent, low_optimizer, streams, look, log, run.progress["iteration"])
        run.finish(lambda: final_test(agent, env, cfg))


if __name__ == "__main__":
    run_command(main)
