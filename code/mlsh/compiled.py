"""torch.compile of what a run does thousands of times: whether it can, and what it falls back to."""

import functools
import os
import shutil
import sys
import warnings

import torch

FAILED = []  # why torch could not compile, in this process, which then went on without


def possible(device):
    """Whether torch can compile for a device: it wants a C++ compiler, or Triton on a GPU."""
    if torch.device(device).type == "cpu":
        return bool(shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")))
    return torch.utils._triton.has_triton()


def any_size(batch):
    """Have torch compile for all sizes of the tensors [S, …] of a batch, some of which may be None."""
    for x in batch:
        if x is not None:
            torch._dynamo.maybe_mark_dynamic(x, 0)


@functools.cache
def compiled(function):
    """`function(policy, batch, index, weight, ...)`, compiled at its first call, or as it is where that fails.

    It is compiled once for all widths of `index` and `weight` [n, width], and all sizes of a batch of `any_size`; and
    once more for other shapes.
    """
    import torch._dynamo  # takes a second

    @functools.cache
    def fast():
        torch._dynamo.config.trace_autograd_ops = True  # not every torch can
        torch._dynamo.config.recompile_limit = 64
        return torch.compile(function, fullgraph=True)

    @functools.wraps(function)
    def call(policy, batch, index, weight, *args, **kwargs):
        if FAILED:
            return function(policy, batch, index, weight, *args, **kwargs)
        for x in (index, weight):
            torch._dynamo.maybe_mark_dynamic(x, 1)
        try:
            with warnings.catch_warnings(action="ignore"):  # of the compiler's, about what it chose
                return fast()(policy, batch, index, weight, *args, **kwargs)
        except Exception as error:  # whatever it is, what is not compiled either works or raises it again
            FAILED.append((str(error).strip() or type(error).__name__).splitlines()[0])
            print(f"--compile: torch could not compile ({FAILED[-1]}); going on without", file=sys.stderr)
            return call(policy, batch, index, weight, *args, **kwargs)

    return call
