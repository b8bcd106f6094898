"""Errors that a user can cause, and how a command reports them."""

import signal
import sys


class UserError(Exception):
    """What went wrong and the remedy, in one line; the command prints it and exits with 2."""


class NotFinite(UserError):
    """A reward, an observation or a weight has become NaN or infinite; learning from it would spoil everything."""


class RenderingUnavailable(UserError):
    """This machine cannot draw the environment."""


SIGNALS = (signal.SIGINT, signal.SIGTERM)


def be_deaf():
    """From here on ignore both signals: what is under way must not be cut off."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def interrupt(number, frame):
    be_deaf()  # torchrun sends it twice
    raise KeyboardInterrupt


def run_command(main):
    """Call `main()` as a command's whole program: no traceback for a UserError, Ctrl-C and SIGTERM alike.

    The first of them reaches `main` as KeyboardInterrupt, what follows is ignored; the exit code is then 130.
    """
    for number in SIGNALS:  # a shell's background job starts with SIGINT ignored
        signal.signal(number, interrupt)
    try:
        main()
    except UserError as error:
        print(f"{sys.argv[0]}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
