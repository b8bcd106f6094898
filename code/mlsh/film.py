"""Films of an agent at work."""

from mlsh.envs import make_env
from mlsh.rollout import collect


def film(cfg, agent, tasks, rngs, episodes=1, most=4):
    """Film `episodes` episodes of each distinct task among `tasks` (one a master), of at most `most` of them.

    Yields task, frames (uint8 [H, W, 3]) and frames per second.
    """
    first = {}
    for g, task in enumerate(tasks):
        first.setdefault(str(task), g)
    shown = list(first.values())[:most]
    env = make_env(cfg, len(shown) * episodes, render_mode="rgb_array")
    env.set_task([tasks[g] for g in shown])
    agent = agent._replace(master=agent.master.only(shown))
    frames = []  # [T + 1] of [len(shown) * episodes]
    collect(env, agent, [rngs[g] for g in shown], low=False, on_step=lambda: frames.append(env.render()), **cfg.rollout)
    fps = env.metadata["render_fps"]
    env.close()
    for j, g in enumerate(shown):
        yield tasks[g], [frame[e] for e in range(j * episodes, (j + 1) * episodes) for frame in frames], fps
