"""Files that are written whole or not at all, with failures of the disk reported as user errors."""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mlsh.errors import UserError


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Context in which something is written to `path`: an OSError inside it becomes a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}); free disk space or check permissions") from None


def write_whole(path: Path | str, content: bytes | memoryview | str) -> None:
    """Write `content` to a temporary file next to `path`, flush it to the disk, then rename it to `path`.

    If that fails, the old file stays as it was, nothing is left next to it, and a UserError is raised.
    """
    temporary = Path(f"{path}.tmp")
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
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


def make_folder(folder: Path) -> None:
    """Make the folder and its parents; raise a UserError if that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder} ({error.strerror}); name another with --out") from None
