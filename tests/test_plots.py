import imageio.v3 as iio
import numpy as np
import pytest

from mlsh.errors import UserError
from mlsh.runs.plots import curve, draw_bands, draw_curves, interval, last_tenth, steps_to_fraction, steps_to_level


def test_interval_agrees_with_a_hand_computation_and_covers_the_mean_as_often_as_it_should():
    middle, low, high = interval(np.array([[1.0, 2, 3, 4, 5], [7, 7, 7, 7, 7]]))
    assert middle.tolist() == [3, 7]
    half = 2.776 * (2.5 / 5) ** 0.5  # t for four degrees of freedom from a table, times the standard error
    np.testing.assert_allclose([low, high], [[3 - half, 7], [3 + half, 7]], rtol=1e-3)
    _, low, high = interval(np.random.default_rng(0).normal(3, 1, (4000, 5)))
    assert 0.94 < ((low < 3) & (high > 3)).mean() < 0.96
    middle, low, high = interval(np.ones((2, 1)))  # with one run the interval is empty
    assert middle.tolist() == low.tolist() == high.tolist() == [1, 1]


def test_bands_are_drawn_in_both_panels(tmp_path):
    x, y = np.arange(5), np.random.default_rng(0).normal(size=(5, 3))
    draw_bands(tmp_path / "a.png", {"one": {"a": (x, y), "b": (x, y + 1)}, "two": {"a": (x, y)}}, "steps")
    picture = iio.imread(tmp_path / "a.png")[..., :3]
    for colour in ((31, 119, 180), (255, 127, 14)):  # Matplotlib's first and second, in both panels and the legend
        assert (picture == colour).all(-1).sum() > 200
    draw_bands(tmp_path / "b.png", dict.fromkeys("xyz", {"a": (x, y)}), "steps", columns=2)  # two rows, one place empty
    rows = iio.imread(tmp_path / "b.png")[..., :3]
    assert rows.shape[0] == 2 * picture.shape[0] and rows.shape[1] == picture.shape[1]
    assert (rows[picture.shape[0] : -60, picture.shape[1] // 2 + 40 :] == 255).all()
    with pytest.raises(UserError):
        draw_bands(tmp_path / "no" / "a.png", {"one": {"a": (x, y)}}, "steps")


@pytest.mark.parametrize(
    ("returns", "steps"), [([1, 9, 9.5, 10], (10, 20)), ([-1, -0.5, -0.11, -0.1], (20, 30)), ([10, 0, 10, 10], (0, 0))]
)
def test_steps_to_a_fraction_of_the_last_return(returns, steps):
    y = np.array(returns)[:, None]
    x = np.arange(4) * 10
    assert (steps_to_fraction(0.9, x, y), steps_to_fraction(0.95, x, y)) == steps


ROWS = [
    {"iteration": i, "task": t, "reward": r, "env_steps": 1_000_000 * (int(i) + 1)}
    for i, t, r in (("0", "a", "1"), ("0", "a", "3"), ("0", "b", "5"), ("1", "b", "7"))
]


@pytest.mark.parametrize(
    ("task", "expected"), [("a", ([1], [2])), ("b", ([1, 2], [5, 7])), (None, ([1, 2], [3, 7]))], ids=str
)
def test_a_curve_is_the_mean_over_the_groups_on_a_task(task, expected):
    assert curve(ROWS, task, "reward") == expected


def test_curves_of_many_tasks_have_one_panel(tmp_path):
    rows = [{"iteration": i, "task": f"[{i}, 2]", "reward": 1, "env_steps": i} for i in range(9)]
    draw_curves(tmp_path / "many.png", rows, {"reward": "return"})
    draw_curves(tmp_path / "two.png", ROWS, {"reward": "return"})
    widths = [iio.imread(tmp_path / f"{name}.png").shape[1] for name in ("many", "two")]
    assert widths[0] < 500 and widths[1] > 1000  # one panel; three panels: a, b and all tasks


def test_any_name_and_label_can_be_drawn(tmp_path):
    x, y = np.arange(5), np.ones((5, 3))
    draw_bands(tmp_path / "a.png", {"$5_$": {"a$b_$": (x, y), "\udc80": (x, y)}, "\udc80": {"a$b_$": (x, y)}}, "steps")
    assert (tmp_path / "a.png").exists()


def test_steps_to_a_level_count_the_mean_of_five_measurements():
    steps = np.arange(11) * 10.0
    assert steps_to_level(41.6, steps, np.where(steps < 40, 0, 42)) == 60
    assert steps_to_level(41.6, steps, np.full(11, 42.0)) == 0
    assert steps_to_level(41.6, steps, np.where(steps == 50, 43.8, 41)) == np.inf  # a single one that is good by chance


def test_the_last_tenth_is_at_least_one_value():
    assert last_tenth(np.arange(20.0)) == 18.5 and last_tenth(np.arange(3.0)) == 2
