"""torch.compile for the PPO update: whether it is possible, and the fallback."""

import functools
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch

FAILED: list[str] = []  # why torch could not compile in this process, which then continued uncompiled


def can_compile(device: str) -> bool:
    """Whether torch can compile for a device: a CPU needs a C++ compiler, a GPU needs Triton."""
    if torch.device(device).type == "cpu":
        return bool(shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")))
    from torch.utils._triton import has_triton

    return has_triton()


def mark_any_size(batch: Iterable[torch.Tensor | None]) -> None:
    """Let torch compile once for all sizes of the tensors [S, …] of a batch."""
    for x in batch:
        if x is not None:
            torch._dynamo.maybe_mark_dynamic(x, 0)


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(policy, batch, index, weights, …)`, compiled at its first call. Where that fails it runs uncompiled.

    Another width of `index` and `weights` [n, width] does not compile it again, nor does another size of a batch that
    went through `mark_any_size`. Any other new shape does.
    """
    import torch._dynamo  # takes a second

    @functools.cache
    def compile_once() -> Callable[..., Any]:
        torch._dynamo.config.trace_autograd_ops = True
        torch._dynamo.config.recompile_limit = 64
        return torch.compile(function, fullgraph=True)

    @functools.wraps(function)
    def call(policy: Any, batch: Any, index: torch.Tensor, weights: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if FAILED:
            return function(policy, batch, index, weights, *args, **kwargs)
        for x in (index, weights):
            torch._dynamo.maybe_mark_dynamic(x, 1)
        try:
            with warnings.catch_warnings(action="ignore"):  # the compiler's remarks on its own choices
                return compile_once()(policy, batch, index, weights, *args, **kwargs)
        except Exception as error:  # uncompiled, the function either works or raises the same error again
            FAILED.append((str(error).strip() or type(error).__name__).splitlines()[0])
            print(f"--compile: torch could not compile ({FAILED[-1]}); continuing without", file=sys.stderr)
            return call(policy, batch, index, weights, *args, **kwargs)

    return call
