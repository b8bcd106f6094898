"""Files that are written whole or not at all, with failures of the disk reported as user errors."""

import contextlib
import csv
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlsh.errors import UserError

UNENCODABLE = "backslashreplace"  # what becomes of bytes in a name or label that are no UTF-8


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Context in which something is written to `path`: an OSError inside it becomes a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}); free disk space or check permissions") from None


@contextlib.contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Context in which the file `path` is read: what a missing or damaged one raises becomes a UserError."""
    try:
        if Path(path).exists() and not Path(path).is_file():  # reading from a pipe would never end
            raise OSError("it is not a file")
        yield
    except (OSError, ValueError, LookupError, TypeError, RecursionError, csv.Error) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"cannot read {path} ({reason:.100}); it is missing, damaged or of another version") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raise a UserError if there is none."""
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__} instead of names and values")
        return content


def temporary_for(path: Path | str) -> Path:
    """Make an empty file next to `path`, to be written and then renamed to `path`, and return its path.

    Nobody can know its name in advance and put a link there. Files that a killed process has left are removed. Raises
    OSError.
    """
    path = Path(path)
    pattern = rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}{re.escape(path.suffix)}"
    for left in path.parent.iterdir():
        if re.fullmatch(pattern, left.name):
            with contextlib.suppress(OSError):
                left.unlink()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{path.suffix}")
    open(temporary, "xb").close()
    return temporary


def write_whole(path: Path | str, content: bytes | memoryview | str) -> None:
    """Write `content` to a temporary file next to `path`, flush it to the disk, then rename it to `path`.

    If that fails, the old file stays as it was, nothing is left next to it, and a UserError is raised. A symbolic link
    at `path` is replaced, and not followed.
    """
    with writing(path):
        temporary = temporary_for(path)
        try:
            with open(temporary, "wb") as file:
                file.write(content.encode(errors=UNENCODABLE) if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def safe_name(text: str) -> str:
    """Return `text` as a part of a file name: at most 60 letters, digits, dots, hyphens and underscores.

    A text that has to be changed for this gets a hash of the original, so that different texts give different names.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    if name == text and 0 < len(name) <= 60:
        return name
    return f"{name[:51]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def refuse_links(folder: Path) -> None:
    """Raise a UserError if a run folder holds a symbolic link to a folder or to nothing, through which we would write.

    A link to a file does no harm, because files are replaced and not written into.
    """
    for path in (folder, folder / "videos", folder / "adaptation"):
        for inner in path.iterdir() if path.is_dir() else ():
            if inner.is_symlink() and not inner.is_file():
                raise UserError(f"{inner} is a link that leads elsewhere; remove it")


def make_folder(folder: Path) -> None:
    """Make the folder and its parents; raise a UserError if that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder} ({error.strerror}); name another with --out") from None
