import pytest
import torch

from mlsh import threads
from mlsh.threads import Threads

CALM, BUSY = 10, 1000  # losses of a core a second


@pytest.fixture
def told(monkeypatch):
    """The thread counts that were set, of four."""
    now, told = [4], []
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: (now.__setitem__(0, n), told.append(n)))
    return told


def follow(looks, fixed=False):
    """Look at a machine that was like that in each of the six seconds before each look."""
    states = [(0.0, 0)]
    for lost in looks:
        seconds, losses = states[-1]
        states.append((seconds + 6, losses + 6 * lost))
    following = Threads(fixed, lambda: states.pop(0))
    for _ in range(len(states)):
        following.follow()


def test_two_looks_must_agree_that_the_machine_is_busy(told, capsys):
    follow([CALM, BUSY, CALM, BUSY, CALM])
    assert told == []
    follow([BUSY, BUSY, CALM, CALM])
    said = "2 of 4 threads, as others want the cores; OMP_NUM_THREADS=2 keeps 2"
    assert told == [2] and said in capsys.readouterr().err


def test_fewer_and_fewer_and_all_again_after_twice_as_long_each_time(told, capsys):
    """Halved at 12 and 24 s, all again 60 · 2 s later, at 144; then halved at 156, and for 240 s at least."""
    follow([BUSY] * 26)
    assert told == [2, 1, 4, 2] and "4 of 4 threads, as others may be gone" in capsys.readouterr().err
    told.clear()
    torch.set_num_threads(4)
    follow([BUSY] * 2 + [CALM] * 40)
    assert told == [4, 2, 4]  # the first by the test; and all stay


def test_a_number_that_the_user_has_set_stays(told):
    follow([BUSY] * 4, fixed=True)
    assert told == []


def test_the_machine_is_looked_at_in_earnest():
    before, after = threads.usage(), threads.usage()
    assert after[0] > before[0] and after[1] >= before[1] > 0
    assert threads.follow.__self__._fixed  # in tests OMP_NUM_THREADS is set
