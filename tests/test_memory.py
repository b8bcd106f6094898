import os

from conftest import CODE
from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.runs.run import describe_machine


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    """The environment has a simulation for each thread."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6), raising=False)
    assert describe_machine.__wrapped__()["cores"] == 6
    for processes, threads in (("1", 6), ("2", 3), ("8", 1)):  # the processes of torchrun share the cores
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        env = make_env(Config(env="AntBandits-v1"), 8)
        assert len(env._data) == threads
        env.close()


def test_cores_are_counted_in_one_place():
    files = [path for folder in ("code", "benchmarks", "examples") for path in CODE.parent.glob(f"{folder}/**/*.py")]
    counting = [path.name for path in files if "cpu_count" in path.read_text()]
    assert len(files) > 50 and counting == ["memory.py"]
