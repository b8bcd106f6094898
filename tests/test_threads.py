import pytest
import torch

from mlsh import threads
from mlsh.threads import Threads

CALM, BUSY, IDLE = (10, 0.0), (1000, 0.5), (10, 3.1)  # per second: losses of a core, idle cores


@pytest.fixture
def told(monkeypatch):
    """The thread counts that were set, of four."""
    now, told = [4], []
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: (now.__setitem__(0, n), told.append(n)))
    return told


def follow(looks, fixed=False):
    """Look at a machine that was like that in each of the six seconds before each look."""
    states = [(0.0, 0, 0.0)]
    for lost, idle in looks:
        seconds, losses, idles = states[-1]
        states.append((seconds + 6, losses + 6 * lost, idles + 6 * idle))
    following = Threads(fixed, lambda: states.pop(0))
    for _ in range(len(states)):
        following.follow()


def test_two_looks_must_agree_that_the_machine_is_busy_and_that_it_is_idle_again(told, capsys):
    follow([CALM, BUSY, CALM, BUSY, CALM])
    assert told == []
    follow([BUSY, BUSY, CALM, CALM])
    said = "2 of 4 threads, as others want the cores; OMP_NUM_THREADS=4 keeps 4"
    assert told == [2] and said in capsys.readouterr().err


def test_threads_come_back_when_cores_are_idle(told, capsys):
    follow([BUSY] * 5 + [CALM] * 3)
    assert told == [2, 1]
    told.clear()
    following = [BUSY] * 2 + [CALM, IDLE, CALM, IDLE, IDLE]
    torch.set_num_threads(4)
    follow(following)
    assert told == [4, 2, 4] and "4 of 4 threads, as cores are idle" in capsys.readouterr().err


def test_a_number_that_the_user_has_set_stays(told):
    follow([BUSY] * 4, fixed=True)
    assert told == []


def test_the_machine_is_looked_at_in_earnest():
    before, after = threads.usage(), threads.usage()
    assert all(y >= x >= 0 for x, y in zip(before, after, strict=True)) and after[0] > before[0]
    assert threads.follow.__self__._fixed  # in tests OMP_NUM_THREADS is set
