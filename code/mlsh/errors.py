"""Errors that a user can cause, and how a command reports them."""

import functools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Self

import gymnasium
import torch

OWN_CODE = (str(Path(__file__).parent), str(Path(gymnasium.__file__).parent))
STANDARD_LIBRARY = ("<", str(Path(signal.__file__).parent))  # "<" begins names such as <frozen importlib>
RETURNED = "reset() must return observation, info; step() observation, reward, terminated, truncated, info"
SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]  # not on Windows
SAME_SIGNAL_SECONDS = 3.0  # torchrun sends two signals for one Ctrl-C
last_signal = -SAME_SIGNAL_SECONDS


class UserError(Exception):
    """An error that the user can fix.

    The message is one line with what happened and the remedy. The command prints it and exits with code 2.
    """


class NoCheckpoint(UserError):
    """There is no checkpoint where one was looked for."""


class EnvironmentFailed(UserError):
    """An environment from outside this package raised an exception."""

    @classmethod
    def from_exception(cls, where: str, error: BaseException) -> Self:
        """Describe `error`, which an environment raised, with the file and line that raised it.

        `where` says when it happened, such as "at step 3, task 1". The line named is the last one in the user's own
        files. If there is none, it is the last one in an installed package other than Gymnasium. A UserError keeps its
        own words: it says what is wrong with something that the environment returned.
        """
        if isinstance(error, cls):
            return error
        if isinstance(error, UserError):
            return cls(f"the environment failed {where}: {error}")
        frames = [x for x in traceback.extract_tb(error.__traceback__) if not x.filename.startswith(OWN_CODE)]
        in_packages = [frame for frame in frames if "site-packages" in frame.filename]
        in_user_files = [x for x in frames if x not in in_packages and not x.filename.startswith(STANDARD_LIBRARY)]
        culprit = (in_user_files or in_packages or [None])[-1]
        place = f", in {culprit.filename}:{culprit.lineno}" if culprit else ""
        remedy = f"; {RETURNED}" if not culprit and "unpack" in str(error) else ""  # by a wrapper of Gymnasium
        return cls(f"the environment failed {where}{place} ({' '.join(repr(error).split()):.200}{remedy})")


class RenderingUnavailable(UserError):
    """This machine cannot draw the environment."""


def ignore_signals() -> None:
    """Ignore the signals that end a run from now on, so that a last save is not cut short."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt(number) for a signal, unless another one did so in the last `SAME_SIGNAL_SECONDS`."""
    global last_signal
    if time.monotonic() > last_signal + SAME_SIGNAL_SECONDS:
        last_signal = time.monotonic()
        raise KeyboardInterrupt(number)


def run_command(main: Callable[[], None]) -> None:
    """Run `main()` as the whole program of a command, and turn errors into one line and an exit code.

    Exit code 2, without a traceback: a UserError, too little memory, or a FloatingPointError (a reward, an observation
    or a weight has become NaN or infinite, and learning from it would spoil the run). Exit code 128 + the signal's
    number, as a shell has it: 130 for Ctrl-C, 143 for SIGTERM and, on Linux, 138 for SIGUSR1, with which SLURM warns of
    a job's end. They reach `main` as KeyboardInterrupt. Exit code 1: the reader of standard output has gone.
    """
    torch.set_flush_denormal(True)  # gradients of a saturated master are denormal, and slow a CPU down many times
    for number in SIGNALS:  # explicitly, because a shell starts its background jobs with SIGINT ignored
        signal.signal(number, interrupt)
    try:
        main()
    except (UserError, FloatingPointError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        reason = " ".join(str(error).split())
        print(f"{Path(sys.argv[0]).name}: error: {reason:.150}; use smaller -N, --groups or --hidden", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # as with `| head`; the interpreter must not flush into the closed pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt as stop:
        sys.exit(128 + int(*stop.args or [signal.SIGINT]))


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate the main function of a command, so that calling it is `run_command(main)`."""
    return functools.wraps(main)(functools.partial(run_command, main))
