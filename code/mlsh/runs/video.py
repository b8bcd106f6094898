"""GIF and MP4 files that are written frame by frame, so that a film of any length takes little memory."""

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.GifImagePlugin import getdata, getheader

from mlsh.errors import RenderingUnavailable, UserError
from mlsh.runs.files import temporary_for

Frame = NDArray[np.uint8]  # [height, width, 3]

PALETTE_FRAMES = 20  # the palette is made from the first frames
COLOURS = 64  # colours made from them
GRID = list(itertools.chain(*itertools.product((0, 128, 255), repeat=3)))  # 27 more, for colours that appear later
UNCHANGED = 127  # the transparent colour, which leaves a pixel as it is


@contextlib.contextmanager
def video(path: Path | str, fps: float) -> Iterator[Callable[[Frame], None]]:
    """Context that writes a film to `path`, a .gif or .mp4; it yields a function that adds a picture.

    Pictures are what `rgb` takes; those of another size than the first one are scaled to it. The file appears when the
    block ends without an exception. Raises a UserError if it cannot be written, and as `rgb` does.
    """
    with write_errors(path):
        make_writer = WRITERS[Path(path).suffix]
        temporary = temporary_for(path)  # with the same suffix, by which imageio picks the format
        writer = make_writer(temporary, fps=fps)

    shape, frames = (), 0

    def add(picture: Any) -> None:
        nonlocal shape, frames
        frame = rgb(picture)
        shape = shape or frame.shape
        if frame.shape != shape:
            frame = np.asarray(Image.fromarray(frame).resize((shape[1], shape[0])))
        with write_errors(path):
            writer.append_data(frame)
        frames += 1

    try:
        yield add
        with write_errors(path):
            writer.close()
            if temporary.suffix == ".mp4":  # ffmpeg does not report a full disk
                check_frames(temporary, frames)
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(Exception):
            writer.close()
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def write_errors(path: Path | str) -> Iterator[None]:
    """Turn what a writer of films raises into a UserError."""
    try:
        yield
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = "check the disk space and permissions, and use a name that ends in .gif or .mp4"
        raise UserError(f"cannot write {path} ({reason:.150}); {remedy}") from None


def check_frames(path: Path, frames: int) -> None:
    """Raise an exception if a film is damaged or does not have so many frames."""
    with imageio.get_reader(path) as reader:
        readable: Any = reader
        if readable.count_frames() != frames:
            raise OSError("it was cut short")


def rgb(picture: Any) -> Frame:
    """Return a picture as a new array [height, width, 3].

    It may be grey or coloured, with or without transparency: uint8 or bool [H, W], [H, W, C] or [C, H, W] with C = 1,
    3 or 4. Raises RenderingUnavailable for anything else.
    """
    try:
        array = np.asarray(picture)
    except (RuntimeError, TypeError, ValueError):  # a ragged list, or a tensor on a GPU
        array = np.array(None)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        what = f"{array.dtype} {list(array.shape)}" if array.dtype != object else repr(picture)
        raise RenderingUnavailable(f"render() returned {what:.80}; it must return a picture, uint8 [height, width, 3]")
    return np.array(np.broadcast_to(array[:, :, :3], (*array.shape[:2], 3)))  # a copy: many draw into it again


class Gif:
    """Writes a GIF with one palette and without dithering, in which still parts of the picture cost nothing.

    That takes a tenth of the bytes. The methods are those of imageio's writers; imageio and Pillow themselves would
    hold all frames of a GIF in memory until the end.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._file = open(path, "wb")  # noqa: SIM115
        self._frame_milliseconds = 1000 / fps
        self._waiting: list[Frame] = []  # frames not yet written
        self._palette: Image.Image | None = None

    def append_data(self, frame: Frame) -> None:
        self._waiting.append(frame)
        if self._palette or len(self._waiting) == PALETTE_FRAMES:
            self._process_waiting()

    def close(self) -> None:
        with self._file:
            if self._waiting:
                self._process_waiting()
            self._write_last()
            self._file.write(b";")

    def _process_waiting(self) -> None:
        palette = self._palette = self._palette or self._write_header()
        for frame in self._waiting:
            new = np.asarray(Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE))
            if np.array_equal(new, self._last):
                self._repeats += 1
            else:
                self._write_last()
                self._last, self._repeats = new, 1
        self._waiting = []

    def _write_header(self) -> Image.Image:
        """Make the palette from the waiting frames, and write what comes before the first frame."""
        common = Image.fromarray(np.concatenate(self._waiting)).quantize(COLOURS).getpalette() or []
        colours = common[: 3 * COLOURS] + GRID
        palette = Image.new("P", (1, 1))
        palette.putpalette(colours)
        height, width, _ = self._waiting[0].shape
        page = Image.new("P", (width, height))
        page.putpalette(colours + [0] * (3 * (UNCHANGED + 1) - len(colours)))
        self._file.writelines(getheader(page, info={"loop": 0})[0])
        self._shown = self._last = np.full((height, width), UNCHANGED, np.uint8)
        self._repeats, self._pending_milliseconds = 0, 0.0
        return palette

    def _write_last(self) -> None:
        """Write what the last frame changes and how long it is shown; called when a different frame follows.

        A frame that would be shown for less than 20 ms is left out, because viewers show it for much longer.
        """
        self._pending_milliseconds += self._repeats * self._frame_milliseconds
        delay = min(round(self._pending_milliseconds / 10) * 10, 655350)  # GIF has 16 bits for units of 10 ms
        changed = self._last != self._shown
        if delay < 20 or not changed.any():
            return
        self._pending_milliseconds -= delay
        self._shown = self._last
        rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        patch = Image.fromarray(np.where(changed[box], self._last[box], np.uint8(UNCHANGED)))
        corner = int(columns[0]), int(rows[0])
        self._file.writelines(getdata(patch, corner, duration=delay, transparency=UNCHANGED, disposal=1))


WRITERS: dict[str, Callable[..., Any]] = {
    ".gif": Gif,
    ".mp4": functools.partial(imageio.get_writer, macro_block_size=2),
}
