import sys

import pytest
from tqdm import tqdm

from mlsh import progress
from mlsh.progress import progress_bar


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves: clock[0] are the seconds."""
    seconds = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_a_file_gets_a_line_now_and_then_and_one_at_the_end(clock, capsys):
    bar = progress_bar(100, initial=10, description="compiling", leave=True)
    for step in range(80):
        bar.set_description_str(f"step {step}", refresh=False)
        bar.set_postfix_str("return 1", refresh=False)
        bar.update()
        clock[0] += 1
    bar.close()
    bar.close()
    lines = capsys.readouterr().err.split("\n")
    assert lines[0] == "step 30:  41% 41/100 [00:30<00:57,  1.03it/s, return 1]" and lines[-1] == ""
    assert [line.split(":")[0] for line in lines[:-1]] == ["step 30", "step 60", "step 79"]


def test_the_end_is_printed_when_it_is_reached(clock, capsys):
    bar = progress_bar(20_000, description="test", unit=" steps", leave=True)
    clock[0] += 2
    bar.update(20_000)
    assert capsys.readouterr().err == "test: 100% 20.0k/20.0k [00:02<00:00, 10.0k steps/s]\n"
    bar.close()
    assert not capsys.readouterr().err


def test_a_bar_that_disappears_from_a_terminal_prints_nothing_in_a_short_time(clock, capsys):
    bar = progress_bar(10, description="test")
    bar.update(10)
    bar.close()
    assert not capsys.readouterr().err


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = progress_bar(10, leave=True)
    assert isinstance(bar, tqdm)
    bar.close()
    assert "\r" in capsys.readouterr().err
