"""What comes in from environments by other people is checked here, and their code leaves this process as it was."""

import contextlib
import functools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mujoco
import numpy as np
import torch
from gymnasium.spaces import Dict, Discrete, MultiDiscrete, Space, Tuple

from mlsh.errors import EnvironmentFailed, UserError

LARGEST = float(np.finfo(np.float32).max)


@contextlib.contextmanager
def environment_errors(where: str) -> Iterator[None]:
    """Context for an environment's own code. Whatever it raises becomes EnvironmentFailed, even SystemExit.

    `where` completes the message. Process-wide settings that the code changes are restored; see `restored_settings`.
    """
    try:
        with restored_settings():
            yield
    except BaseException as error:
        raise EnvironmentFailed.from_exception(where, error) from None


def working_folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 (this is called at every step)
    except FileNotFoundError:  # it has been deleted
        return None


def set_working_folder(folder: str | None) -> None:
    with contextlib.suppress(OSError):
        os.chdir(folder or "")


def default_device() -> torch.device:
    return torch.empty(0).device  # torch.get_default_device takes five times as long


def set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device == torch.device("cpu") else device)  # None makes torch's calls faster


SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (working_folder, set_working_folder),
    (torch.get_default_dtype, torch.set_default_dtype),
    (default_device, set_default_device),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (np.geterr, lambda values: np.seterr(**values)),
)
OF_ENVIRONMENTS = SETTINGS[:3]  # an environment may rely on what it has set, so these come back when it is called again
chosen: dict[Callable[[], Any], Any] = {}  # what an environment has set: reading function -> value


@contextlib.contextmanager
def restored_settings() -> Iterator[None]:
    """Context after which the working folder, NumPy's error handling and torch's global settings are as before.

    The working folder, the default dtype and the default device that an environment has set are set again within the
    next such context.
    """
    before = [get() for get, _ in SETTINGS]
    for get, set_to in OF_ENVIRONMENTS:
        if get in chosen:
            set_to(chosen[get])
    try:
        yield
    finally:
        chosen.clear()
        for (get, set_to), value in zip(SETTINGS, before, strict=True):
            now = get()
            if now != value:
                chosen[get] = now
                set_to(value)


@contextlib.contextmanager
def restored_signals() -> Iterator[None]:
    """Context after which SIGINT and SIGTERM do what they did before: an environment may take them when it is made.

    `restored_settings` leaves them out, because that would double the time it takes in every step.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)


@functools.cache
def say_once(text: str) -> None:
    """Print a line to stderr, but only the first time."""
    print(text, file=sys.stderr)


shown: set[tuple[type[Warning], str]] = set()


def warn_of_mujoco(text: str) -> None:
    say_once(f"MuJoCo warns: {text.split(' Time = ')[0]}")


@contextlib.contextmanager
def each_warning_once(silent: bool = False) -> Iterator[None]:
    """Context that shows each warning of Python or MuJoCo once in this process, and not once for each copy.

    If it is `silent`, the warnings in this context are not shown, but MuJoCo's later ones are.
    """
    mujoco.set_mju_user_warning((lambda text: None) if silent else warn_of_mujoco)
    with warnings.catch_warnings(record=True) as caught:
        yield
    mujoco.set_mju_user_warning(warn_of_mujoco)
    for warning in caught if not silent else ():
        key = warning.category, str(warning.message)
        if key not in shown:
            shown.add(key)
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


def number_in(x: Any) -> float | None:
    """Return the number that `x` is or holds as its only element, or None if there is none."""
    with contextlib.suppress(Exception):  # other people's objects may fail in any way
        array = np.asarray(x.detach().cpu() if isinstance(x, torch.Tensor) else x)
        if array.size == 1 and array.dtype.kind in "biuf":
            return array.item()
    return None


def reward_in(x: Any) -> float:
    """Return a reward that is a number or holds one as its only element. Raises UserError if it does not."""
    number = number_in(x)
    if number is None:
        raise UserError(f"step() returned the reward {shortened(x)}; it must be one number")
    return number


def flag_in(x: Any) -> bool:
    """Return whether an episode has ended, from what `step` returned. Raises UserError for what is no single flag."""
    flag = x if x is None or isinstance(x, (bool, np.bool_)) else number_in(x)
    if flag is None and x is not None:
        raise UserError(f"step() returned {shortened(x)} for terminated or truncated; return True or False")
    return bool(flag)


def info_in(info: Any) -> dict[str, float]:
    """Return the numbers of an info dict that are finite as float32. Everything else in it is ignored."""
    numbers = {str(name): number_in(x) for name, x in info.items()} if isinstance(info, Mapping) else {}
    return {name: x for name, x in numbers.items() if x is not None and abs(x) <= LARGEST}


def reset_observation(result: Any) -> Any:
    """Return the observation of what `reset` returned. Raises UserError if that is not a pair with an info."""
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], (Mapping, type(None))):
        return result[0]
    raise UserError(f"reset() returned {shortened(result)}; it must return (observation, info)")


def array_of_shape(observation: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return an observation of a Box as an array of the shape of its space, apart from axes of length 1.

    Raises UserError for another shape.
    """
    array = np.asarray(observation.detach().cpu() if isinstance(observation, torch.Tensor) else observation)
    if np.squeeze(array).shape != tuple(n for n in shape if n != 1):
        has = f"{shortened(observation)}, of shape {list(array.shape)}"
        raise UserError(f"an observation is {has}, but its space has shape {list(shape)}")
    return array.reshape(shape)


def check_categories(space: Space, observation: Any) -> None:
    """Raise UserError for a number outside a Discrete or MultiDiscrete space: one-hot, it would stand for another."""
    if isinstance(space, Dict):
        for key, child in space.items():
            check_categories(child, observation[key])
    elif isinstance(space, Tuple):
        for child, part in zip(space, observation, strict=True):
            check_categories(child, part)
    elif isinstance(space, (Discrete, MultiDiscrete)) and not space.contains(observation):
        index, n = np.asarray(observation) - space.start, space.n if isinstance(space, Discrete) else space.nvec
        if np.any((index < 0) | (index >= n)):
            raise UserError(f"an observation has {shortened(observation)}, which is not in its space {space}")


def as_bytes(pixels: Any) -> np.ndarray:
    """Return an image whose space has the type uint8 as that type. Raises UserError if that would change a number."""
    array = np.asarray(pixels)
    if array.dtype == np.uint8:
        return array
    with np.errstate(invalid="ignore"):
        image = array.astype(np.uint8)
    if not np.array_equal(image, array):
        has = f"{array.dtype} from {np.min(array):.3g} to {np.max(array):.3g}"
        raise UserError(f"an observation is {has}, but its space is uint8; convert one of them")
    return image


def shortened(x: Any) -> str:
    """Return the representation of an object as one short line."""
    return f"{' '.join(repr(x).split()):.80}"
