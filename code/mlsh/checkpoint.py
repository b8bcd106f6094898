"""Save and load a run: plain data, written whole or not at all, read without running any code in it."""

import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from mlsh.config import Config, RL2Config
from mlsh.errors import UserError
from mlsh.models import Hierarchy

FORMAT = 1
PLAIN = {"format": int, "config": dict, "iteration": int, "env_steps": int, "seconds": float, "run_id": str}
SCRIPTS = {Config: "train.py", RL2Config: "train_rl2.py"}


def snapshot(cfg, agent, optimizer, progress):
    """The state between two outer iterations, `progress` included: nested dicts of copied tensors and plain values.

    Masters are not in it: each outer iteration begins with new ones.
    """
    state = {"subs": agent.subs.state_dict(), "normaliser": agent.normaliser.state_dict()}
    state["optimizer"] = optimizer.state_dict()
    copy = tree_map_only(torch.Tensor, lambda t: t.detach().cpu().clone(), state)
    return {"format": FORMAT, "config": cfg.as_dict(), **copy, **progress}


def save(data, path):
    """Write `data` beside `path`, flush it to the disk, then rename; a failure leaves the old file whole."""
    temporary = Path(f"{path}.tmp")
    buffer = io.BytesIO()  # to a file directly, torch would report a full disk in its own words
    torch.save(data, buffer)
    try:
        with open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path} ({error}); free disk space or check permissions") from None


def load(path, kinds=(Config,)):
    """Read a checkpoint, given as a file or as its run folder. Returns its dict, tensors on the CPU.

    `kinds`: the configurations that will do, `Config` (of `snapshot`) or `RL2Config`.
    """
    path = Path(path)
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises for a name too long)
        path = path / "checkpoint.pt"
    if not os.path.isfile(path):  # noqa: PTH113
        give = "give a run folder or a checkpoint.pt of train.py"
        raise UserError(f"there is no checkpoint at {path}; {give}; a run killed before its first starts without -c")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guess at what a foreign file is
            damaged = zipfile.ZipFile(path).testzip()  # compares checksums, which torch.load does not
            if damaged:
                raise ValueError(f"{damaged} has a wrong checksum")
            data = torch.load(path, map_location="cpu", weights_only=True)
        for name, kind in PLAIN.items():
            if type(data[name]) is not kind or kind is int and data[name] < 0:
                raise TypeError(f"{name} is {data[name]!r}")
        if not all(x.isfinite().all() for x in tree_leaves(data) if isinstance(x, torch.Tensor)):
            raise ValueError("not all of its numbers are finite")
        if data["format"] != FORMAT:
            raise ValueError(f"it has format {data['format']}, this version reads {FORMAT}")
        kind = RL2Config if "episodes" in data["config"] else Config
        data["config"] = kind.from_dict(data["config"])
    except Exception as error:  # a damaged file may fail anywhere
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds other things than plain data, which are not loaded"
        raise UserError(f"{path} is damaged or no checkpoint of train.py ({reason:.80}); use another one") from None
    if kind not in kinds:
        raise UserError(f"{path} is of {SCRIPTS[kind]}; this takes one of {SCRIPTS[kinds[0]]}")
    return data


def restore(data, **parts):
    """Put what `load` gave into modules and optimisers, by their name in it: subs=agent.subs, …"""
    try:
        for name, part in parts.items():
            part.load_state_dict(data[name])
            for parameter, state in getattr(part, "state", {}).items():  # an optimiser compares no shapes
                if any(x.dim() and x.shape != parameter.shape for x in state.values()):
                    raise ValueError(f"{name} is of parameters of other shapes")
    except Exception as error:  # whatever is in it
        env = data["config"].env
        raise UserError(f"the checkpoint does not fit {env}: {' '.join(str(error).split())[:200]}") from None


def agent_of(data, env):
    """A new agent with the checkpoint's sub-policies and normaliser, for a batched environment of fitting spaces."""
    agent = Hierarchy.build(data["config"], env)
    restore(data, subs=agent.subs, normaliser=agent.normaliser)
    return agent
