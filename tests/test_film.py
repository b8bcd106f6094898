from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.film import film
from mlsh.models import Hierarchy
from mlsh.rollout import streams


def test_film_shows_each_task_once():
    cfg = Config(T=4, groups=3)
    agent = Hierarchy.build(cfg, make_env(cfg, 3))
    films = list(film(cfg, agent, [1, 0, 1], streams(0, 0, "film", range(3)), episodes=2))
    assert [task for task, _, _ in films] == [1, 0]
    for _, frames, fps in films:
        assert len(frames) == 2 * 5 and frames[0].shape == (400, 400, 3) and fps == 10
