"""Errors that a user can cause, and how a command reports them."""

import errno
import functools
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Self

import gymnasium
import torch

from mlsh import process

OWN_CODE = tuple(f"{Path(file).parent}{os.sep}" for file in (__file__, gymnasium.__file__))
STANDARD_LIBRARY = ("<", str(Path(signal.__file__).parent))  # "<" begins names such as <frozen importlib>
RETURNED = "reset() must return observation, info; step() observation, reward, terminated, truncated, info"


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
        own words: it says what is wrong with something that the environment returned. A KeyboardInterrupt is raised
        again, because it stops the command.
        """
        if isinstance(error, KeyboardInterrupt):
            raise error
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


def run_command(main: Callable[[], None]) -> None:
    """Run `main()` as the whole program of a command, and turn errors into one line and an exit code.

    Exit code 2, without a traceback: a UserError, a missing library, too little memory, a FloatingPointError (a reward,
    an observation or a weight has become NaN or infinite, and learning from it would spoil the run), or output that
    cannot be printed because the disk is full. Exit code 128 + the signal's number, as a shell has it: 130 for Ctrl-C,
    143 for SIGTERM and, on Linux, 138 for SIGUSR1, with which SLURM warns of a job's end. Signals reach `main` as
    KeyboardInterrupt. It is no error if the reader of the output has gone, as with `| head`.
    """
    program = Path(sys.argv[0]).name

    def fail(reason: object) -> None:
        print(f"{program}: error: {reason}", file=sys.stderr)
        sys.exit(2)

    def failed_in_thread(failed: threading.ExceptHookArgs) -> None:
        if isinstance(failed.exc_value, OSError):  # TensorBoard's, which also raises it where values are logged
            print(f"{program}: {failed.exc_value}", file=sys.stderr)
        else:
            threading.__excepthook__(failed)

    threading.excepthook = failed_in_thread
    torch.set_flush_denormal(True)  # gradients of a saturated master are denormal, and slow a CPU down many times
    process.protect_output()
    try:
        process.handle_signals(process.interrupt)
        main()
        sys.stdout.flush()
    except (UserError, FloatingPointError) as error:
        fail(error)
    except ModuleNotFoundError as error:
        fail(f"{error}; install it with pip")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("memory|size calculation overflowed", str(error)):
            raise
        reason = " ".join(str(error).split()) or "there is too little memory"
        fail(f"{reason:.150}; use smaller -N, --groups or --hidden")
    except KeyboardInterrupt as stop:
        number = int(*stop.args or [signal.SIGINT])
        print(f"{program}: stopped by {signal.Signals(number).name}", file=sys.stderr)
        sys.exit(128 + number)
    finally:
        process.handle_signals(process.exit_at_once)
    for number, reason in process.UNPRINTED.items():
        if number not in (errno.EPIPE, errno.EIO):  # the reader has gone, or the terminal
            fail(f"not all output could be printed ({reason}); free disk space")


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate the main function of a command, so that calling it is `run_command(main)`."""
    return functools.wraps(main)(functools.partial(run_command, main))
