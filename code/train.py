"""Algorithm 1 of "Meta Learning Shared Hierarchies" (Frans et al. 2018): python train.py --help"""

import secrets
import sys
import time

from mlsh import checkpoint, config
from mlsh.adapt import final_test
from mlsh.envs import make_env
from mlsh.errors import NotFinite, RenderingUnavailable, UserError, run_command
from mlsh.film import film
from mlsh.logger import Logger, make_run_folder
from mlsh.models import Hierarchy
from mlsh.ppo import adam, update
from mlsh.rollout import balanced_tasks, collect, streams


def train(cfg, env, agent, low_optimizer, log, progress):
    """Run the outer iterations that `progress` lacks; after each, yield how many there were and all env steps."""
    groups = range(cfg.groups)
    env_steps, record = progress["env_steps"], cfg.record

    def look(moment):
        """Play episodes of outer iteration i from which nobody learns; every cfg.record of them film some more."""
        nonlocal record
        if record and (i % record == 0 or i == cfg.tasks - 1):
            try:
                for task, frames, fps in film(cfg, agent, tasks, streams(cfg.seed, i, f"film {moment}", groups)):
                    log.video(i, f"{moment}-video-{task}", frames, fps, env_steps)
            except RenderingUnavailable as error:
                log.say(f"no videos: {error}")
                record = 0
        return collect(env, agent, streams(cfg.seed, i, moment, groups), low=False, **cfg.rollout)

    for i in range(progress["iteration"], cfg.tasks):
        tasks = balanced_tasks(env, cfg.seed, i, cfg.groups)
        env.set_task(tasks)
        agent.master.reset(streams(cfg.seed, i, "master", groups))
        master_optimizer = adam(agent.master, cfg.hlr)
        low_stats = {}
        explore = cfg.explore * cfg.faded(i)

        pretrain = look("pretrain")
        for w in range(cfg.W):  # warm-up: only θ learns
            rngs = streams(cfg.seed, i, f"warmup {w}", groups)
            rollout = collect(env, agent, rngs, low=False, explore=explore, **cfg.rollout)
            master_stats = update(agent.master, master_optimizer, rollout.master, rngs, **cfg.master_ppo)
            env_steps += rollout.steps
            log.step(i, "warm-up", rollout, env_steps)
        trained = look("warmup")
        for u in range(cfg.U):  # joint: θ and φ learn
            rngs = streams(cfg.seed, i, f"joint {u}", groups)
            rollout = collect(env, agent, rngs, explore=explore, **cfg.rollout)
            master_stats = update(agent.master, master_optimizer, rollout.master, rngs, **cfg.master_ppo)
            low_stats = update(agent.subs, low_optimizer, rollout.low, rngs, **cfg.low_ppo(i))
            agent.normaliser.update(rollout.obs)
            env_steps += rollout.steps
            log.step(i, "joint", rollout, env_steps)
        joint = look("afterjoint")

        env_steps += pretrain.steps + trained.steps + joint.steps
        log.task_done(i, tasks, (pretrain, trained, joint), master_stats, low_stats, env_steps)
        yield i + 1, env_steps


def main():
    cfg, saved = config.parse(sys.argv[1:], checkpoint.load)
    env = make_env(cfg, cfg.groups * cfg.N)
    agent = Hierarchy.build(cfg, env)
    agent.subs.reset(streams(cfg.seed, 0, "sub-policies", range(cfg.num_low)))
    low_optimizer = adam(agent.subs, cfg.llr)
    progress = {"iteration": 0, "env_steps": 0, "seconds": 0.0, "run_id": secrets.token_hex(4)}
    folder, _lock = make_run_folder(cfg, resume=cfg.resume)
    if saved:
        saved = checkpoint.load(folder)  # again, now that no other run can change it
        checkpoint.restore(saved, agent, low_optimizer)
        progress = {name: saved[name] for name in progress}
    path = folder / "checkpoint.pt"
    state, written = checkpoint.snapshot(cfg, agent, low_optimizer, progress), time.monotonic()
    checkpoint.save(state, path)  # a disk that cannot take it shows now
    log = Logger(cfg, folder, progress)
    try:
        for iteration, env_steps in train(cfg, env, agent, low_optimizer, log, progress):
            progress |= {"iteration": iteration, "env_steps": env_steps, "seconds": log.seconds}
            state = checkpoint.snapshot(cfg, agent, low_optimizer, progress)
            if time.monotonic() > written + cfg.save_seconds:
                checkpoint.save(state, path)
                written = time.monotonic()
        checkpoint.save(state, path)
        tasks = env.train_tasks or [env.sample_task(rng) for rng in streams(cfg.seed, 0, "test: task", range(10))]
        rows, test_steps = final_test(agent, tasks, cfg)
        log.finish({"env": cfg.env, "seed": cfg.seed, **progress, "test_env_steps": test_steps, "test": rows})
    except NotFinite as error:
        checkpoint.save(state, path)
        log.finish()
        done = f"{path} is that of before, after {state['iteration']} tasks"
        raise UserError(f"stopped: {error}; {done}. Try a smaller --llr or --hlr, or look at the environment") from None
    except OSError as error:
        log.abandon()
        raise UserError(
            f"cannot write to {folder} ({error}); free disk space, then -c --out {folder} goes on"
        ) from None
    except KeyboardInterrupt:  # the outer iteration under way is dropped; -c begins it again
        checkpoint.save(state, path)
        log.finish()
        print(f"saved after {state['iteration']} of {cfg.tasks} tasks; -c --out {folder} goes on", file=sys.stderr)
        raise
    for row in rows:
        print("task {task} ({label}): return {return:.4g} ± {standard_error:.2g}, shares {share}".format(**row))
    print(f"{progress['env_steps']:,} env steps in {progress['seconds']:.0f} s; see {folder}")


if __name__ == "__main__":
    run_command(main)
