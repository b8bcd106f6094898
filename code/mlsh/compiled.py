"""torch.compile for the PPO update: whether it is possible, and the fallback."""

import atexit
import functools
import os
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FAILED: list[str] = []  # why torch could not compile in this process, which then continued uncompiled


def can_compile(device: str) -> bool:
    """Whether torch can compile for a device: a CPU needs a C++ compiler, a GPU needs Triton."""
    if torch.device(device).type == "cpu":
        return bool(shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")))
    from torch.utils._triton import has_triton

    return has_triton()


def private_cache() -> Path:
    """Return a folder for what torch compiles, in which only this user can write, because its content is run.

    It is mlsh in $XDG_CACHE_HOME or ~/.cache. If that cannot be made, or others can write there, it is a new temporary
    folder, which is removed when the process ends.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        folder = (base if base.is_absolute() else Path("~/.cache").expanduser()) / "mlsh"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
        if os.name == "posix" and (state.st_uid != os.geteuid() or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
            raise PermissionError(f"others can write to {folder}")
        folder.chmod(0o700)
    except (OSError, RuntimeError):  # RuntimeError: there is no home directory
        folder = Path(tempfile.mkdtemp(prefix="mlsh-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def mark_any_size(batch: Iterable[Tensor | None]) -> None:
    """Let torch compile once for all sizes of the tensors [S, …] of a batch."""
    for x in batch:
        if x is not None:
            torch._dynamo.maybe_mark_dynamic(x, 0)


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(policy, batch, index, weights, rows, …)`, compiled at its first call; uncompiled if that fails.

    It is compiled once for all widths of `index` and `weights` [R, width], for all R of `rows` [R, n], and for all
    sizes of a batch that went through `mark_any_size`. It is compiled again if `rows` are None, and for other shapes.
    """
    shared = str(Path(tempfile.gettempdir()).absolute() / "torchinductor_")  # torch's choice, which anybody can make
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", shared).startswith(shared):  # torch sets it when it is imported
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(private_cache())
    import torch._dynamo  # takes a second
    import torch._inductor.config

    @functools.cache
    def compile_once() -> Callable[..., Any]:
        torch._dynamo.config.trace_autograd_ops = True
        torch._dynamo.config.recompile_limit = 64
        torch._inductor.config.cpp_cache_precompile_headers = False  # they would go to torch's shared folder
        return torch.compile(function, fullgraph=True)

    @functools.wraps(function)
    def call(
        policy: Any, batch: Any, index: Tensor, weights: Tensor, rows: Tensor | None, *args: Any, **kw: Any
    ) -> Any:
        if FAILED:
            return function(policy, batch, index, weights, rows, *args, **kw)
        for x in (index, weights):
            torch._dynamo.maybe_mark_dynamic(x, 1)
        if rows is not None:
            mark_any_size((index, weights, rows))
        try:
            with warnings.catch_warnings(action="ignore"):  # the compiler's remarks on its own choices
                return compile_once()(policy, batch, index, weights, rows, *args, **kw)
        except Exception as error:  # uncompiled, the function either works or raises the same error again
            FAILED.append((str(error).strip() or type(error).__name__).splitlines()[0])
            print(f"--compile: torch could not compile ({FAILED[-1]}); continuing without", file=sys.stderr)
            return call(policy, batch, index, weights, rows, *args, **kw)

    return call
