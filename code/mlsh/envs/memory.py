"""How much memory and how many cores this process may use."""

import contextlib
import math
import os
from pathlib import Path


def available_memory() -> float:
    """Return the bytes that this process may use: the smallest of the limits that are known, or infinity.

    The limits are the machine's memory, the container's, and that of `ulimit -v`.
    """
    limits: list[float] = [math.inf]
    with contextlib.suppress(ValueError, OSError, AttributeError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ValueError, OSError):  # ValueError: the file says "max", which is no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    with contextlib.suppress(ImportError):  # Windows has no such module
        import resource

        limits.append(resource.getrlimit(resource.RLIMIT_AS)[0])
    return min(limit for limit in limits if limit > 0)  # −1 means no limit


def available_cores() -> int:
    """Return the number of cores that this process may use, which a job scheduler or `taskset` may limit."""
    limited = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(limited(0)) if limited else os.cpu_count() or 1


def own_cores() -> int:
    """Return this process's share of the cores, if torchrun has started several processes on this machine."""
    processes = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, available_cores() // max(1, int(processes) if processes.isdecimal() else 1))
