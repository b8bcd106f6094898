"""Algorithm 1 of "Meta Learning Shared Hierarchies" (Frans et al. 2018): python train.py --help"""

from mlsh import parallel
from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.envs.base import VectorTasks
from mlsh.errors import command
from mlsh.meta_test import final_test
from mlsh.models import Hierarchy
from mlsh.optim import Adam
from mlsh.ppo import update
from mlsh.rollout import collect, init_normaliser
from mlsh.runs.film import Evaluator
from mlsh.runs.log import MLSHLog
from mlsh.runs.run import Run
from mlsh.sampling import Streams, balanced_tasks


def train(
    cfg: Config,
    env: VectorTasks,
    agent: Hierarchy,
    sub_optimizer: Adam,
    streams: Streams,
    evaluator: Evaluator,
    log: MLSHLog,
    start: int = 0,
) -> None:
    """The outer iterations from `start` on. `env`, `agent` and `streams` hold the task groups of this process."""
    for i in range(start, cfg.tasks):
        tasks = balanced_tasks(env, streams, i, cfg.groups)
        env.set_task(tasks)
        agent.master.reset(streams(i, "master"))  # a new θ for every task
        agent.master.compiled = agent.sub_policies.compiled = i >= cfg.compiled_from
        master_optimizer = Adam(agent.master, cfg.master_lr)
        sub_optimizer.param_groups[0]["lr"] = cfg.sub_lr_at(i)

        evaluator.play(i, "untrained")
        for w in range(cfg.W):  # warm-up period: only θ learns
            rngs = streams(i, f"warmup {w}")
            rollout = collect(env, agent, rngs, cfg.training_rollout(i), for_sub_policies=False)
            figures = update(agent.master, master_optimizer, rollout.master, rngs, cfg.master_ppo)
            if not cfg.num_sub_policies:  # flat policies have no joint period
                agent.normaliser.update(rollout.obs)
            log.training_iteration_done(i, "warm-up", rollout.outcome, figures)
        evaluator.play(i, "trained")
        for u in range(cfg.U):  # joint period: θ and φ learn
            rngs = streams(i, f"joint {u}")
            rollout = collect(env, agent, rngs, cfg.training_rollout(i))
            assert rollout.sub_policies is not None
            figures = update(agent.master, master_optimizer, rollout.master, rngs, cfg.master_ppo)
            sub_figures = parallel.update(agent.sub_policies, sub_optimizer, rollout.sub_policies, rngs, cfg.sub_ppo(i))
            agent.normaliser.update(rollout.obs)
            log.training_iteration_done(i, "joint", rollout.outcome, figures, sub_figures)
        evaluator.play(i, "joint")
        log.outer_iteration_done(i, tasks)


@command
def main() -> None:
    run = Run(Config)
    cfg, groups = run.cfg, parallel.own_groups(run.cfg.groups)
    streams = Streams(cfg.seed, groups)
    env = make_env(cfg, len(groups) * cfg.N)
    agent = Hierarchy.build(cfg, env, len(groups), parallel.gather)
    agent.sub_policies.reset(Streams(cfg.seed, range(cfg.num_sub_policies))(0, "sub-policies"))
    agent.sub_policies.spread(cfg.sub_spread, streams.of(0, "sub-policies: spread"))
    sub_optimizer = Adam(agent.sub_policies, cfg.sub_lr, per_member=True)
    saved = {"sub_policies": agent.sub_policies, "normaliser": agent.normaliser, "optimizer": sub_optimizer}
    with run.training(MLSHLog, **saved, **env.components) as log:
        start = run.progress["iteration"]
        if not start:
            env.set_task(balanced_tasks(env, streams, 0, cfg.groups))
            agent.master.reset(streams(0, "master"))
            log.count_env_steps(init_normaliser(env, agent, streams(0, "normaliser"), cfg.training_rollout(0)))
        train(cfg, env, agent, sub_optimizer, streams, Evaluator(cfg, env, agent, streams, log), log, start)
        run.finish(lambda: final_test(agent, env, cfg))


if __name__ == "__main__":
    main()
