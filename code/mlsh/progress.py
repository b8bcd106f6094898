"""Progress on stderr: a bar on a terminal, and an occasional line of text in a pipe or a file."""

import sys
import time
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0


class ProgressLines:
    """Prints progress as lines of text. It has the methods of `tqdm` that this package uses."""

    def __init__(self, total: int, initial: int, leave: bool, **style: Any) -> None:
        """`style` are more arguments of `tqdm.format_meter`."""
        self._done = self._printed = initial
        self._total, self._leave = total, leave
        self._style: dict[str, Any] = {"total": total, "initial": initial, "ncols": 0} | style  # 0 columns: no bar
        self._start = self._last_line = time.monotonic()

    def set_description_str(self, description: str, refresh: bool = True) -> None:
        self._style["prefix"] = description

    def set_postfix_str(self, postfix: str, refresh: bool = True) -> None:
        self._style["postfix"] = postfix

    def update(self, n: int = 1) -> None:
        """Count `n` more. Print a line if the last one is old enough, or if this is the end."""
        self._done += n
        due = time.monotonic() >= self._last_line + SECONDS_BETWEEN_LINES
        if due or self._leave and self._done >= self._total:
            self._print()

    def close(self) -> None:
        """Print how far it came, unless that was printed."""
        if self._leave and self._done > self._printed:
            self._print()

    def _print(self) -> None:
        self._printed, self._last_line = self._done, time.monotonic()
        seconds = self._last_line - self._start
        print(tqdm.format_meter(self._done, elapsed=seconds, **self._style), file=sys.stderr)


def progress_bar(
    total: int, initial: int = 0, description: str = "", unit: str = "it", leave: bool = False
) -> tqdm | ProgressLines:
    """Start a progress bar that counts from `initial` to `total`; call `update(n)`, and `close()` at the end.

    In a pipe or a file it prints at most one line every `SECONDS_BETWEEN_LINES`. With `leave` the bar stays on the
    terminal when it is closed, or prints a last line in a file; otherwise it disappears.
    """
    style: dict[str, Any] = {"unit": unit, "unit_scale": total >= 10_000}  # large numbers are shortened: 12.3k
    if sys.stderr.isatty():
        return tqdm(total=total, initial=initial, desc=description, leave=leave, dynamic_ncols=True, **style)
    return ProgressLines(total, initial, leave, prefix=description, **style)
