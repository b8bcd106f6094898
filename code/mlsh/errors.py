"""Errors that a user can cause, and how a command reports them."""

import signal
import sys


class UserError(Exception):
    """What went wrong and the remedy, in one line; the command prints it and exits with 2."""


class NotFinite(UserError):
    """A reward, an observation or a weight has become NaN or infinite; learning from it would spoil everything."""


class RenderingUnavailable(UserError):
    """This machine cannot draw the environment."""


def run_command(main):
    """Call `main()` as a command's whole program: no traceback for a UserError, Ctrl-C and SIGTERM alike.

    Both signals reach `main` as KeyboardInterrupt; if it lets that out, the exit code is 130.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job starts with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    try:
        main()
    except UserError as error:
        print(f"{sys.argv[0]}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
