"""Errors that a user can cause, and how a command reports them."""

import os
import signal
import sys
import time
import traceback
from pathlib import Path

import gymnasium
import torch

OURS = (str(Path(__file__).parent), str(Path(gymnasium.__file__).parent))
PYTHONS = ("<", str(Path(signal.__file__).parent))


class UserError(Exception):
    """What went wrong and the remedy, in one line; the command prints it and exits with 2."""


class EnvironmentFailed(UserError):
    """Somebody's environment raised an exception."""

    @classmethod
    def told(cls, where, error):
        """Of the exception `error`: it, and the line of a file of theirs, or else of a package, where it was raised."""
        frames = [x for x in traceback.extract_tb(error.__traceback__) if not x.filename.startswith(OURS)]
        packages = [frame for frame in frames if "site-packages" in frame.filename]
        theirs = [frame for frame in frames if frame not in packages and not frame.filename.startswith(PYTHONS)]
        place = f", in {frame.filename}:{frame.lineno}" if (frame := (theirs or packages or [None])[-1]) else ""
        return cls(f"the environment failed {where}{place} ({' '.join(repr(error).split()):.200})")


class RenderingUnavailable(UserError):
    """This machine cannot draw the environment."""


SIGNALS = (signal.SIGINT, signal.SIGTERM)
ONCE = 3.0  # seconds in which several signals are one: torchrun sends two
signalled = -ONCE


def be_deaf():
    """From here on ignore both signals: what is under way must not be cut off."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def interrupt(number, frame):
    global signalled
    if time.monotonic() > signalled + ONCE:
        signalled = time.monotonic()
        raise KeyboardInterrupt


def run_command(main):
    """Call `main()` as a command's whole program: no traceback for a UserError, Ctrl-C and SIGTERM alike.

    They reach `main` as KeyboardInterrupt, but not what follows within `ONCE`; the exit code is then 130. Where memory
    does not suffice, that is the user's error. So is a FloatingPointError: a reward, an observation or a weight has
    become NaN or infinite, and learning from it would spoil everything.
    """
    torch.set_flush_denormal(True)  # a saturated master's gradients, with which a CPU takes many times as long
    for number in SIGNALS:  # a shell's background job starts with SIGINT ignored
        signal.signal(number, interrupt)
    try:
        main()
    except (UserError, FloatingPointError) as error:
        print(f"{sys.argv[0]}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        reason = " ".join(str(error).split())
        print(f"{sys.argv[0]}: error: {reason:.150}; use smaller -N, --groups or --hidden", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
