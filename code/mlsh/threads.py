"""How many threads PyTorch has: fewer while other programs want the cores, as its threads wait for each other."""

import os
import sys
import time

import torch
from tqdm import tqdm

LOOK = 5.0  # seconds from one look at the machine to the next; two must agree
LOST = 50.0  # times a second and thread of PyTorch: 10 where nobody else wants a core, 100 where one program does
PATIENCE = 60.0  # seconds until all threads are tried again; each time twice as long


def usage():
    """Seconds, and how often threads of this process have lost their core so far; 0 on Windows."""
    try:
        import resource
    except ImportError:
        return time.monotonic(), 0
    return time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class Threads:
    """Halves PyTorch's threads on a busy machine, and tries all of them again later.

    What is computed depends on their number, to rounding, so a change is told; with `fixed` there is none.
    """

    def __init__(self, fixed, usage=usage):
        self._fixed, self._usage = fixed, usage
        self._most = self._last = None
        self._again, self._patience, self._suspicious = 0.0, PATIENCE, False

    def follow(self):
        """To be called often; looks at the machine now and then."""
        n = torch.get_num_threads()
        self._most = self._most or n
        if self._fixed or self._most == 1:
            return
        now = self._usage()
        self._last = self._last or now
        seconds, lost = (x - y for x, y in zip(now, self._last, strict=True))
        if seconds < LOOK:
            return
        busy, self._last = n > 1 and lost > LOST * seconds * n, now
        if busy and self._suspicious:
            self._again, self._patience = now[0] + self._patience, 2 * self._patience
            self._set(n // 2, "as others want the cores")
        elif n < self._most and now[0] >= self._again:
            self._set(self._most, "as others may be gone")
        self._suspicious = busy and not self._suspicious

    def _set(self, n, why):
        torch.set_num_threads(n)
        tqdm.write(f"{n} of {self._most} threads, {why}; OMP_NUM_THREADS={n} keeps {n}", file=sys.stderr)


follow = Threads(fixed="OMP_NUM_THREADS" in os.environ).follow
