"""How many threads PyTorch has: fewer while other programs want the cores, as its threads wait for each other."""

import os
import sys
import time

import psutil
import torch
from tqdm import tqdm

LOOK = 5.0  # seconds from one look at the machine to the next; two must agree
PREEMPTED = 50.0  # times a second and thread that it lost its core: 10 where nobody else wants one, 100 where one does


def usage():
    """Seconds, how often threads of this process have lost their core to others (0 on Windows), idle core seconds."""
    try:
        import resource
    except ImportError:
        return time.monotonic(), 0, 0.0
    return time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw, psutil.cpu_times().idle


class Threads:
    """Halves PyTorch's threads on a busy machine, and brings them back when enough cores are idle.

    What is computed depends on their number, to rounding, so a change is told; with `fixed` there is none.
    """

    def __init__(self, fixed, usage=usage):
        self._fixed, self._usage = fixed, usage
        self._most = self._last = self._wish = None

    def follow(self):
        """To be called often; looks at the machine now and then."""
        n = torch.get_num_threads()
        self._most = self._most or n
        if self._fixed or self._most == 1:
            return
        now = self._usage()
        self._last = self._last or now
        seconds, lost, idle = (x - y for x, y in zip(now, self._last, strict=True))
        if seconds < LOOK:
            return
        wish = n
        if n > 1 and lost > PREEMPTED * seconds * n:
            wish = n // 2
        elif n < self._most and idle > 0.9 * seconds * (self._most - n):
            wish = self._most
        if wish == self._wish != n:
            torch.set_num_threads(wish)
            why = "others want the cores" if wish < n else "cores are idle"
            tqdm.write(f"{wish} of {self._most} threads, as {why}; OMP_NUM_THREADS={n} keeps {n}", file=sys.stderr)
        self._last, self._wish = now, wish


follow = Threads(fixed="OMP_NUM_THREADS" in os.environ).follow
