"""How much memory there is."""

import contextlib
import math
import os
from pathlib import Path


def available():
    """Bytes that this process may have at most: the machine's, the container's, or what `ulimit -v` says; or inf."""
    limits = [math.inf]
    with contextlib.suppress(ValueError, OSError, AttributeError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ValueError, OSError):  # "max" is no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    with contextlib.suppress(ImportError):  # Windows
        import resource

        limits.append(resource.getrlimit(resource.RLIMIT_AS)[0])
    return min(limit for limit in limits if limit > 0)  # −1 is no limit
