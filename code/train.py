"""Algorithm 1 of "Meta Learning Shared Hierarchies" (Frans et al. 2018): python train.py --help"""

import secrets
import sys
import time

import torch

from mlsh import checkpoint, config, parallel
from mlsh.adapt import final_test, tasks_to_test
from mlsh.envs import make_env
from mlsh.errors import EnvironmentFailed, NotFinite, RenderingUnavailable, UserError, be_deaf, run_command
from mlsh.film import film
from mlsh.logger import Logger, Silence, make_run_folder
from mlsh.models import Hierarchy
from mlsh.ppo import adam, update
from mlsh.rollout import balanced_tasks, collect, streams, summary


def train(cfg, env, agent, low_optimizer, log, progress):
    """Run the outer iterations that `progress` lacks; after each, yield how many there were and all env steps.

    `env` and `agent` have the task groups of this process.
    """
    groups = parallel.mine(cfg.groups)
    env_steps, films = progress["env_steps"], parallel.FIRST

    def look(moment):
        """Play episodes of outer iteration i from which nobody learns; every cfg.record of them film some more."""
        nonlocal films
        if cfg.record and (i % cfg.record == 0 or i == cfg.tasks - 1):
            masters = agent.master.joined(parallel.gather(agent.master.state_dict()))
            rngs = streams(cfg.seed, i, f"film {moment}", range(cfg.groups))
            try:
                for task, frames, fps in film(cfg, agent._replace(master=masters), tasks, rngs) if films else ():
                    log.video(i, f"{moment}-video-{task}", frames, fps, env_steps)
            except RenderingUnavailable as error:
                log.say(f"no videos: {error}")
                films = False
        rollout = collect(env, agent, streams(cfg.seed, i, moment, groups), low=False, **cfg.rollout)
        return summary(rollout, parallel.gather)

    for i in range(progress["iteration"], cfg.tasks):
        tasks = balanced_tasks(env, cfg.seed, i, cfg.groups)
        env.set_task([tasks[g] for g in groups])
        agent.master.reset(streams(cfg.seed, i, "master", groups))
        master_optimizer = adam(agent.master, cfg.hlr)
        low_stats = {}
        explore = cfg.explore * cfg.faded(i)

        pretrain = look("pretrain")
        for w in range(cfg.W):  # warm-up: only θ learns
            rngs = streams(cfg.seed, i, f"warmup {w}", groups)
            rollout = collect(env, agent, rngs, low=False, explore=explore, **cfg.rollout)
            master_stats = update(agent.master, master_optimizer, rollout.master, rngs, **cfg.master_ppo)
            rollout = summary(rollout, parallel.gather)
            env_steps += rollout.steps
            log.step(i, "warm-up", rollout, env_steps)
        trained = look("warmup")
        for u in range(cfg.U):  # joint: θ and φ learn
            rngs = streams(cfg.seed, i, f"joint {u}", groups)
            rollout = collect(env, agent, rngs, explore=explore, **cfg.rollout)
            master_stats = update(agent.master, master_optimizer, rollout.master, rngs, **cfg.master_ppo)
            low_stats = update(agent.subs, low_optimizer, rollout.low, rngs, **cfg.low_ppo(i), total=parallel.total)
            agent.normaliser.update(rollout.obs, parallel.gather)
            rollout = summary(rollout, parallel.gather)
            env_steps += rollout.steps
            log.step(i, "joint", rollout, env_steps)
        joint = look("afterjoint")

        env_steps += pretrain.steps + trained.steps + joint.steps
        everyones = parallel.gather(master_stats)
        master_stats = {name: torch.cat([stats[name] for stats in everyones]) for name in master_stats}
        log.task_done(i, tasks, (pretrain, trained, joint), master_stats, low_stats, env_steps)
        yield i + 1, env_steps


def main():
    parallel.start()
    cfg, saved = parallel.from_first(lambda: config.parse(sys.argv[1:], checkpoint.load))
    cfg.device = parallel.device(cfg.device)
    groups = len(parallel.mine(cfg.groups))
    env = make_env(cfg, groups * cfg.N)
    agent = Hierarchy.build(cfg, env, groups)
    agent.subs.reset(streams(cfg.seed, 0, "sub-policies", range(cfg.num_low)))
    low_optimizer = adam(agent.subs, cfg.llr)
    progress = {"iteration": 0, "env_steps": 0, "seconds": 0.0, "run_id": secrets.token_hex(4)}
    folder = parallel.from_first(lambda: make_run_folder(cfg, resume=cfg.resume))
    path = folder / "checkpoint.pt"
    if saved:
        saved = parallel.from_first(lambda: checkpoint.load(path))  # again, now that no other run can change it
        checkpoint.restore(saved, subs=agent.subs, normaliser=agent.normaliser, optimizer=low_optimizer)
        progress = {name: saved[name] for name in progress}

    def save():
        if parallel.FIRST:
            checkpoint.save(state, path)

    state, written = checkpoint.snapshot(cfg, agent, low_optimizer, progress), time.monotonic()
    save()  # a disk that cannot take it shows now
    log = Logger(cfg, folder, progress) if parallel.FIRST else Silence()
    try:
        for iteration, env_steps in train(cfg, env, agent, low_optimizer, log, progress):
            progress |= {"iteration": iteration, "env_steps": env_steps, "seconds": log.seconds}
            state = checkpoint.snapshot(cfg, agent, low_optimizer, progress)
            if time.monotonic() > written + cfg.save_seconds:
                save()
                written = time.monotonic()
        save()
        if parallel.FIRST:
            rows, test_steps = final_test(agent, tasks_to_test(env, cfg.seed), cfg)
            log.finish({"env": cfg.env, "seed": cfg.seed, **progress, "test_env_steps": test_steps, "test": rows})
    except (NotFinite, EnvironmentFailed, parallel.Lost) as error:
        be_deaf()
        save()
        log.finish()
        where = f"in outer iteration {state['iteration']} (tasks {env.task[:: cfg.N]}); {path} has what was before"
        raise UserError(f"{error}, {where}") from None
    except UserError as error:  # of writing
        log.abandon()
        raise UserError(f"{error}, then -c --out {folder} goes on") from None
    except KeyboardInterrupt:  # the outer iteration under way is dropped; -c begins it again
        save()
        log.say(f"saved after {state['iteration']} of {cfg.tasks} tasks; -c --out {folder} goes on")
        log.finish()
        raise
    if parallel.FIRST:
        for row in rows:
            print("task {task} ({label}): return {return:.4g} ± {standard_error:.2g}, shares {share}".format(**row))
        print(f"{progress['env_steps']:,} env steps in {progress['seconds']:.0f} s; see {folder}")
    parallel.stop()


if __name__ == "__main__":
    run_command(main)
