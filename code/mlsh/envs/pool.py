"""Where tests are played: as many episodes at once as the environment bears, and a progress bar."""

from tqdm import tqdm

from mlsh.envs import make_env, max_parallel_episodes


class Stage:
    """A context with batched environments of a `Config`, and a bar over at most so many env `steps`."""

    def __init__(self, cfg, what, steps):
        self.cfg, self.most, self._envs = cfg, max_parallel_episodes(cfg), {}
        bar = {"unit": " steps", "unit_scale": True, "dynamic_ncols": True, "leave": False}
        self._bar = tqdm(total=steps, desc=what, **bar)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for env in self._envs.values():
            env.close()
        self._bar.close()

    def env(self, episodes, tasks, use="play"):
        """The environment for `use`, of so many episodes and with these tasks; made anew only for another number."""
        env = self._envs.get(use)
        if env is None or env.num_envs != episodes:
            if env is not None:
                env.close()  # first, so that there are never two
            env = self._envs[use] = make_env(self.cfg, episodes)
        env.set_task(tasks)
        return env

    def parts(self, n, episodes):
        """0 … n-1 in ranges of as many neighbours as play at once, each `episodes`."""
        at_once = max(1, self.most // episodes)
        return [range(first, min(first + at_once, n)) for first in range(0, n, at_once)]

    def played(self, steps):
        self._bar.update(steps)
