"""Save and load a run: plain data, written whole or not at all, read without running any code in it."""

import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from mlsh.errors import UserError
from mlsh.runs.files import write_whole

FORMAT = 2
PLAIN = {"config": dict, "iteration": int, "env_steps": int, "train_env_steps": int, "seconds": float, "run_id": str}


def snapshot(cfg, progress, **parts):
    """The state between two outer iterations: nested dicts of copied tensors and plain values.

    `parts`: modules and optimisers, by name. Masters are not among them: each outer iteration begins with new ones.
    """
    state = {name: part.state_dict() for name, part in parts.items()}
    copy = tree_map_only(torch.Tensor, lambda t: t.detach().cpu().clone(), state)
    return {"format": FORMAT, "kind": cfg.kind, "config": cfg.as_dict(), **copy, **progress}


def save(data, path):
    buffer = io.BytesIO()  # to a file directly, torch would report a full disk in its own words
    torch.save(data, buffer)
    write_whole(path, buffer.getbuffer())


def load(path, kinds):
    """Read a checkpoint, given as a file or as its run folder. Returns its dict, tensors on the CPU.

    `kinds`: the classes of settings (`settings.RunSettings`) that will do; its "config" is then one of them.
    """
    path = Path(path)
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises for a name too long)
        path = path / "checkpoint.pt"
    if not os.path.isfile(path):  # noqa: PTH113
        give = "give a run folder or a checkpoint.pt"
        raise UserError(f"there is no checkpoint at {path}; {give}; a run killed before its first starts without -c")
    try:
        data = upgraded(read(path))
        for name, kind in PLAIN.items():
            if type(data[name]) is not kind or kind is int and data[name] < 0:
                raise TypeError(f"{name} is {data[name]!r}")
        if not all(x.isfinite().all() for x in tree_leaves(data) if isinstance(x, torch.Tensor)):
            raise ValueError("not all of its numbers are finite")
        fitting = [settings for settings in kinds if settings.kind == data["kind"]]
        if fitting:
            data["config"] = fitting[0].from_dict(data["config"])
    except Exception as error:  # a damaged file may fail anywhere
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds other things than plain data, which are not loaded"
        raise UserError(f"{path} is damaged or no checkpoint of ours ({reason:.80}); use another one") from None
    if not fitting:
        wanted = " or ".join(settings.kind for settings in kinds)
        raise UserError(f"{path} is of a run of {data['kind']!r:.20}; this takes one of {wanted}")
    return data


def read(path):
    """What is in the file, or an exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's guess at what a foreign file is
        damaged = zipfile.ZipFile(path).testzip()  # compares checksums, which torch.load does not
        if damaged:
            raise ValueError(f"{damaged} has a wrong checksum")
        return torch.load(path, map_location="cpu", weights_only=True)


def upgraded(data):
    """What an earlier version of this package saved, as this one does."""
    if data["format"] not in (1, FORMAT):
        raise ValueError(f"it has format {data['format']}, this version reads 1 and {FORMAT}")
    cfg = data["config"]
    if "kind" not in data:
        data["kind"] = "rl2" if "episodes" in cfg else "mlsh"
    if data["kind"] == "rl2":
        cfg.setdefault("normalise", False)
    if data["kind"] == "mlsh":
        cfg.setdefault("compile", "off")  # as it was
    if data["kind"] == "mlsh" and "convolve" not in cfg and data["sub_policies"]["weight1"].shape[2] >= 64:  # maybe images
        cfg["convolve"] = False
    if "train_env_steps" not in data:
        learned = cfg["W"] + cfg["U"] if data["kind"] == "mlsh" else 1  # rollouts an outer iteration
        measured = 3 if data["kind"] == "mlsh" else 0
        data["train_env_steps"] = data["env_steps"] * learned // (learned + measured)
    if data["format"] == 1 and data["kind"] == "mlsh" and data["optimizer"]["state"]:
        data["optimizer"] = apart(data["optimizer"], cfg["num_sub_policies"])
    return data


def apart(optimizer, n):
    """The state dict of an Adam over parameters [n, …], as of one that keeps its n members apart (format 2)."""
    (group,) = optimizer["param_groups"]
    states = [optimizer["state"][i] for i in group["params"]]
    rows = [{name: x[k] if x.dim() else x.clone() for name, x in s.items()} for s in states for k in range(n)]
    return {"state": dict(enumerate(rows)), "param_groups": [group | {"params": list(range(len(rows)))}]}


def restore(data, **parts):
    """Put what `load` gave into modules and optimisers, by their name in it: sub_policies=agent.sub_policies, …"""
    missing = parts.keys() - data.keys()
    if missing:
        raise UserError(f"the checkpoint is of an older version, without {', '.join(missing)}: it cannot be continued")
    try:
        for name, part in parts.items():
            part.load_state_dict(data[name])
            for parameter, state in getattr(part, "state", {}).items():  # an optimiser compares no shapes
                if any(x.dim() and x.shape != parameter.shape for x in state.values()):
                    raise ValueError(f"{name} is of parameters of other shapes")
    except Exception as error:  # whatever is in it
        env = data["config"].env
        raise UserError(f"the checkpoint does not fit {env}: {' '.join(str(error).split())[:200]}") from None
