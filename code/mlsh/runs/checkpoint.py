"""Saving and loading the state of a run: plain data, written whole or not at all, and read without running code."""

import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from mlsh.envs.modules import FROM_CHECKPOINTS
from mlsh.errors import NoCheckpoint, UserError
from mlsh.runs.files import write_whole
from mlsh.settings import RunSettings

FORMAT = 3
PRETRAINED = Path(__file__).parents[1] / "pretrained"  # checkpoints that come with the package
FIELDS = {"config": dict, "iteration": int, "env_steps": int, "train_env_steps": int, "seconds": float, "run_id": str}

Component = nn.Module | torch.optim.Optimizer


def snapshot(cfg: RunSettings, progress: Mapping[str, Any], **components: Component) -> dict[str, Any]:
    """Return the state between two outer iterations as nested dicts of copied CPU tensors and plain values.

    `components` are modules and optimisers by name. Masters are not among them, because each outer iteration starts
    with new ones.
    """
    state = {name: component.state_dict() for name, component in components.items()}
    copy = tree_map_only(torch.Tensor, lambda t: t.detach().cpu().clone(), state)
    return {"format": FORMAT, "kind": cfg.KIND, "config": cfg.as_dict(), **copy, **progress}


def save(data: dict[str, Any], path: Path) -> None:
    """Write a snapshot to `path`, whole or not at all; raise a UserError if that fails."""
    buffer = io.BytesIO()  # writing to the file directly, torch would report a full disk in a way of its own
    torch.save(data, buffer)
    write_whole(path, buffer.getbuffer())


def load(path: Path | str, kinds: Collection[type[RunSettings]]) -> dict[str, Any]:
    """Read a checkpoint, given as a file, its run folder or the name of a shipped one, with tensors on the CPU.

    `kinds` are the classes of settings that the caller can use; "config" in the result is an instance of one of them.
    Raises NoCheckpoint if there is none, and a UserError if it is damaged or belongs to a run of another kind.
    """
    path = Path(path)
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises for a name that is too long)
        path = path / "checkpoint.pt"
    elif not os.path.exists(path) and str(path) in shipped_names():  # noqa: PTH110
        path = PRETRAINED / f"{path}.pt"
    if not os.path.isfile(path):  # noqa: PTH113
        names = ", ".join(shipped_names())
        remedy = f"give a run folder or a checkpoint.pt, or one of {names}, which come with the package"
        raise NoCheckpoint(f"there is no checkpoint at {path}; {remedy}")
    try:
        data = upgraded(read(path))
        check(data)
        settings = next((kind for kind in kinds if data["kind"] == kind.KIND), None)
        if settings:
            data["config"] = settings.from_dict(data["config"])
            FROM_CHECKPOINTS[data["config"].env] = path
    except UserError as error:
        raise UserError(f"{path} holds settings that cannot work ({error}); use another checkpoint") from None
    except Exception as error:  # a damaged file may fail anywhere
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "it contains more than plain data, which is not loaded"
        raise UserError(f"{path} is damaged or no checkpoint of this project ({reason:.80}); use another one") from None
    if settings is None:
        wanted = " or ".join(kind.KIND for kind in kinds)
        raise UserError(f"{path} belongs to a run of kind {data['kind']!r:.20}; give one of kind {wanted}")
    return data


def shipped_names() -> list[str]:
    """Return the names of the checkpoints that come with the package."""
    return sorted(file.stem for file in PRETRAINED.glob("*.pt"))


def read(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint file; raise some exception if it is damaged or not plain data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch guesses what a foreign file may be
        with zipfile.ZipFile(path) as archive:
            sizes = [entry.file_size for entry in archive.infolist()]
            if sum(sizes) > path.stat().st_size:  # torch compresses nothing; a small file could fill the memory
                raise ValueError("its entries are larger than the file")
            damaged = archive.testzip()  # compares checksums, which torch.load does not
        if damaged:
            raise ValueError(f"{damaged} has a wrong checksum")
        return torch.load(path, map_location="cpu", weights_only=True)


def check(data: Mapping[str, Any]) -> None:
    """Raise an exception if a field has the wrong type or range, or a tensor is not finite or larger than its data."""
    for name, kind in FIELDS.items():
        x = data[name]
        if type(x) is not kind or (kind is not str and kind is not dict and not 0 <= x < 2**63):
            raise TypeError(f"{name} is {x!r:.40}")
    tensors = [x for x in tree_leaves(data) if isinstance(x, torch.Tensor)]
    if any(x.nbytes > x.untyped_storage().nbytes() for x in tensors):  # expanded from a few numbers
        raise ValueError("a tensor is larger than its data")
    if not all(x.isfinite().all() for x in tensors):
        raise ValueError("not all of its numbers are finite")


def upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier version saved in the format of this one, except for names of settings.

    Format 2 called the sub-policies "subs". Format 1 also kept the moments of all sub-policies together. Renamed and
    removed settings are handled by `Settings.from_dict`.
    """
    if data["format"] not in (1, 2, FORMAT):
        raise ValueError(f"it has format {data['format']}, and this version reads formats 1 to {FORMAT}")
    cfg = data["config"]
    if "subs" in data:
        data["sub_policies"] = data.pop("subs")
    if "kind" not in data:
        data["kind"] = "rl2" if "episodes" in cfg else "mlsh"
    if data["kind"] == "rl2":
        cfg.setdefault("normalise", False)
    if data["kind"] == "mlsh":
        weights = data["sub_policies"]["weight1"]  # [K, 2, obs, hidden]
        cfg.setdefault("compile", "off")
        if weights.shape[2] >= 64:  # perhaps images, which were flattened before there were convolutions
            cfg.setdefault("convolve", False)
        if data["format"] == 1 and data["optimizer"]["state"]:
            data["optimizer"] = split_by_member(data["optimizer"], len(weights))
    if "train_env_steps" not in data:
        learned = cfg["W"] + cfg["U"] if data["kind"] == "mlsh" else 1  # rollouts per outer iteration
        evaluated = 3 if data["kind"] == "mlsh" else 0
        data["train_env_steps"] = data["env_steps"] * learned // (learned + evaluated)
    return data


def split_by_member(optimizer: dict[str, Any], n: int) -> dict[str, Any]:
    """Turn the state dict of an Adam over parameters [n, …] into that of an Adam with a state for each of n members."""
    (group,) = optimizer["param_groups"]
    states = [optimizer["state"][i] for i in group["params"]]
    rows = [{name: x[k] if x.dim() else x.clone() for name, x in s.items()} for s in states for k in range(n)]
    return {"state": dict(enumerate(rows)), "param_groups": [group | {"params": list(range(len(rows)))}]}


def restore(data: Mapping[str, Any], **components: Component) -> None:
    """Load what `load` returned into modules and optimisers, given by their names in it.

    Raises a UserError if one of them is missing in the checkpoint or has other shapes.
    """
    missing = components.keys() - data.keys()
    if missing:
        raise UserError(f"the checkpoint is of an older version, without {', '.join(missing)}: it cannot be continued")
    try:
        for name, component in components.items():
            component.load_state_dict(data[name])
            for parameter, state in getattr(component, "state", {}).items():  # an optimiser compares no shapes
                if any(x.dim() and x.shape != parameter.shape for x in state.values()):
                    raise ValueError(f"{name} is for parameters of other shapes")
    except Exception as error:  # a checkpoint from elsewhere may fail in any way
        env = data["config"].env
        raise UserError(
            f"the checkpoint of a run on {env} does not fit this environment: {' '.join(str(error).split())[:200]}"
        ) from None
