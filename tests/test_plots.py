import imageio.v3 as iio
import numpy as np
import pytest

from mlsh.plots import draw_bands, interquartile_mean, interval


def test_interquartile_mean_by_hand():
    assert interquartile_mean([9, 1, 2, 3]) == 2.5  # the lowest and the highest quarter left out
    assert interquartile_mean([9, 1, 2]) == 4  # too few to leave any out
    assert interquartile_mean([[0, 4, 6, 100], [1, 1, 1, 1]]).tolist() == [5, 1]


def test_interval_is_around_the_mean_and_narrows():
    y = np.random.default_rng(0).normal(3, 1, (2, 400))
    for runs, width in ((4, 6.0), (400, 0.35)):
        middle, low, high = interval(y[:, :runs])
        assert (low < middle).all() and (middle < high).all() and (high - low < width).all()
    assert [x.tolist() for x in interval(np.ones((1, 5)))] == [[1], [1], [1]]
    middle, low, high = interval(np.ones((2, 1)))  # one run has no interval
    assert low.tolist() == high.tolist() == [1, 1]


def test_bands_are_drawn(tmp_path):
    x, y = np.arange(5), np.random.default_rng(0).normal(size=(5, 3))
    draw_bands(tmp_path / "a.png", {"one": {"a": (x, y), "b": (x, y + 1)}, "two": {"a": (x, y)}}, "steps")
    picture = iio.imread(tmp_path / "a.png")[..., :3]
    for colour in ((31, 119, 180), (255, 127, 14)):  # Matplotlib's first and second, in both panels and the legend
        assert (picture == colour).all(-1).sum() > 200
    with pytest.raises(OSError):
        draw_bands(tmp_path / "no" / "a.png", {"one": {"a": (x, y)}}, "steps")
