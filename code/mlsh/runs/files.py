"""Files written whole or not at all, and a disk that takes no more as the user's error."""

import contextlib
import hashlib
import os
import re
from pathlib import Path

from mlsh.errors import UserError


@contextlib.contextmanager
def writing(path):
    """What the operating system refuses while something is written to `path` becomes a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}); free disk space or check permissions") from None


def write_whole(path, content):
    """Write `content` (bytes or text) beside `path`, flush it to the disk, then rename: the one atomic write.

    A failure leaves the old file whole and nothing beside it, and is a UserError.
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


def safe_name(text):
    """`text` as a part of a file's name: letters, digits, dot, minus and underscore, 60 at most.

    A text that is changed by that gets a hash of its own, so that different texts keep different names.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    if name == text and 0 < len(name) <= 60:
        return name
    return f"{name[:51]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def make_folder(folder):
    """Make the folder, and those above it; a UserError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder} ({error.strerror}); name another with --out") from None
