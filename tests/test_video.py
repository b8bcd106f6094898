import weakref

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image, ImageSequence

from mlsh.errors import UserError
from mlsh.runs.video import PALETTE_FRAMES, video


def write(path, frames, fps=10):
    with video(path, fps) as add:
        for frame in frames:
            add(frame)


def shades(*values):
    return [np.full((64, 64, 3), shade, np.uint8) for shade in values]


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_a_video_shows_its_frames(tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    write(path, shades(0, 90, 200))
    read = iio.imread(path, index=None) if ending == "gif" else iio.imread(path)
    assert [int(frame.mean().round(-1)) for frame in read] == [0, 90, 200]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_gif_shows_every_frame_as_it_was(tmp_path):
    colours = np.array([[0, 0, 0], [255, 255, 255], [213, 94, 0], [0, 114, 178], [240, 228, 66]], np.uint8)
    rng = np.random.default_rng(0)
    frames = [np.full((30, 50, 3), 255, np.uint8)]
    for _ in range(2 * PALETTE_FRAMES):
        frames.append(frames[-1].copy())
        y, x = rng.integers(0, 25), rng.integers(0, 45)
        frames[-1][y : y + 5, x : x + 5] = colours[rng.integers(len(colours))]
    write(tmp_path / "x.gif", frames)
    distinct = [a for a, b in zip(frames, [None, *frames], strict=False) if b is None or (a != b).any()]
    seen = [np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(Image.open(tmp_path / "x.gif"))]
    assert len(seen) == len(distinct) > PALETTE_FRAMES
    assert all(np.array_equal(a, b) for a, b in zip(seen, distinct, strict=True))


def test_equal_frames_of_a_gif_are_one_frame_that_is_shown_longer(tmp_path):
    write(tmp_path / "x.gif", shades(*[0] * 30, *[200] * 3, 0, *[120] * 10_000))
    gif = Image.open(tmp_path / "x.gif")
    assert gif.info["loop"] == 0
    durations = [f.info["duration"] for f in ImageSequence.Iterator(gif)]
    assert durations == [3000, 300, 100, 655350]  # the last is the longest that a GIF allows


def test_a_colour_that_appears_late_is_kept(tmp_path):
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 240
    write(tmp_path / "x.gif", [*shades(*[90] * PALETTE_FRAMES), red])
    *_, last = ImageSequence.Iterator(Image.open(tmp_path / "x.gif"))
    assert np.asarray(last.convert("RGB"))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_frames_do_not_stay_in_memory(tmp_path, ending):
    references = []

    class Frame(np.ndarray):
        """An array to which weak references are possible."""

    def frames():
        for i in range(5 * PALETTE_FRAMES):
            frame = np.full((64, 64, 3), i, np.uint8).view(Frame)
            references.append(weakref.ref(frame))
            yield frame
            del frame
            assert sum(reference() is not None for reference in references) <= PALETTE_FRAMES

    write(tmp_path / f"x.{ending}", frames())


def test_a_video_that_cannot_be_written_is_a_user_error(tmp_path):
    for name in ("nowhere/x.gif", "nowhere/x.mp4", "x.jpeg", "x"):
        with pytest.raises(UserError, match="cannot write"):
            write(tmp_path / name, shades(0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_a_film_that_fails_leaves_the_old_file(tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), video(path, 10) as add:
        for frame in shades(*range(30)):
            add(frame)
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("fps", [10, 30, 60, 125])
def test_a_gif_takes_as_long_as_its_frames_and_shows_none_for_less_than_20_ms(tmp_path, fps):
    with video(tmp_path / "x.gif", fps) as add:
        for i in range(60):
            add(np.full((8, 8, 3), 4 * i, np.uint8))
    with Image.open(tmp_path / "x.gif") as gif:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
    assert min(durations) >= 20 and abs(sum(durations) - 60_000 / fps) <= 20
