"""GIF and MP4 files written frame by frame, so that a film of any length takes little memory."""

import contextlib
import functools
import itertools
import os
from pathlib import Path

import imageio
import numpy as np
from PIL import Image
from PIL.GifImagePlugin import getdata, getheader

from mlsh.errors import UserError

SAMPLE = 20  # frames at the start that the palette is taken from
COLOURS = 64  # how many
GRID = list(itertools.chain(*itertools.product((0, 128, 255), repeat=3)))  # and 27 more, for what comes later
UNCHANGED = 127  # the colour that leaves a pixel as it is


@contextlib.contextmanager
def video(path, fps):
    """A function that adds a frame (uint8 [H, W, 3]) to the film at `path`, a .gif or .mp4 by its ending.

    The file is there when the block has ended well. Raises UserError where it cannot be written.
    """
    temporary = Path(path).with_name(f".{Path(path).name}")  # the ending tells imageio what to write
    with refusing(path):
        writer = WRITERS[temporary.suffix](temporary, fps=fps)

    def add(frame):
        with refusing(path):
            writer.append_data(frame)

    try:
        yield add
        with refusing(path):
            writer.close()
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(Exception):
            writer.close()
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def refusing(path):
    """What a writer of films raises becomes a UserError."""
    try:
        yield
    except (KeyError, OSError, ValueError) as error:
        wanted = "it wants free disk space, permission, and an end in .gif or .mp4"
        raise UserError(f"cannot write {path} ({error}); {wanted}") from None


class Gif:
    """A GIF with one palette and without dithering: what stands still costs nothing, a tenth of the bytes.

    Its methods are those of imageio's writers, which hold all frames of a GIF to the end, as Pillow does.
    """

    def __init__(self, path, fps):
        self._file = open(path, "wb")  # noqa: SIM115
        self._delay = 1000 / fps
        self._sample, self._palette = [], None

    def append_data(self, frame):
        self._sample.append(frame)
        if self._palette or len(self._sample) == SAMPLE:
            self._drain()

    def close(self):
        with self._file:
            if self._sample:
                self._drain()
            self._write_last()
            self._file.write(b";")

    def _drain(self):
        if not self._palette:
            self._begin()
        for frame in self._sample:
            new = np.asarray(Image.fromarray(frame).quantize(palette=self._palette, dither=0))
            if np.array_equal(new, self._last):
                self._times += 1
            else:
                self._write_last()
                self._last, self._times = new, 1
        self._sample = []

    def _begin(self):
        """Take the palette from the sample, and write what comes before the frames."""
        common = Image.fromarray(np.concatenate(self._sample)).quantize(COLOURS).getpalette()
        colours = common[: 3 * COLOURS] + GRID
        self._palette = Image.new("P", (1, 1))
        self._palette.putpalette(colours)
        height, width, _ = self._sample[0].shape
        page = Image.new("P", (width, height))
        page.putpalette(colours + [0] * (3 * (UNCHANGED + 1) - len(colours)))
        self._file.writelines(getheader(page, info={"loop": 0})[0])
        self._before = self._last = np.full((height, width), UNCHANGED, np.uint8)
        self._times, self._due = 0, 0.0  # frames like the last, and milliseconds not yet shown

    def _write_last(self):
        """Write what changed with the last frame, and for how long it is shown; not before the next is another.

        A frame that would be shown for less than 20 ms, which viewers take for much longer, is left out.
        """
        self._due += self._times * self._delay
        delay = min(round(self._due / 10) * 10, 655350)  # 16 bits of 10 ms
        changed = self._last != self._before
        if delay < 20 or not changed.any():
            return
        self._due -= delay
        self._before = self._last
        rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        part = Image.fromarray(np.where(changed[box], self._last[box], np.uint8(UNCHANGED)))
        corner = int(columns[0]), int(rows[0])
        self._file.writelines(getdata(part, corner, duration=delay, transparency=UNCHANGED, disposal=1))


WRITERS = {".gif": Gif, ".mp4": functools.partial(imageio.get_writer, macro_block_size=2)}
