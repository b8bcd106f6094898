"""A page about finished runs: one HTML file that needs no other."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
from matplotlib.figure import Figure

from mlsh.harness.finished import Run
from mlsh.runs.files import make_folder, safe_name, write_whole
from mlsh.runs.log import MOMENTS, final_test_tables
from mlsh.runs.plots import draw_rewards, replace_unencodable

MANY_TASKS = 6  # no learning curve of each task for more than these


class Table(NamedTuple):
    """A table, and lines of text below it."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()


def data_uri(kind: str, content: bytes) -> str:
    """Return a data URI with a file's content, so that a page needs no other file."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def svg(figure: Figure) -> str:
    """Return a figure as the data URI of an SVG image with a transparent background."""
    replace_unencodable(figure)
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mlsh"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return data_uri("svg+xml", file.getvalue())


def draw_curves_of(run: Run, best: float | None) -> dict[str | None, str]:
    """Return images of a run's learning curves: of all tasks (None), and if they are few, of each task."""
    tasks = sorted({row["task"] for row in run.metrics}, key=lambda task: (len(task), task))
    rewards = {moment.column: name for name, moment in MOMENTS.items() if moment.column in run.metrics[0]}
    images = {}
    for task in (None, *(tasks if len(tasks) <= MANY_TASKS else [])):
        figure = Figure(figsize=(4.2, 3.0), layout="constrained")
        axes = figure.subplots()
        draw_rewards(axes, run.metrics, task, rewards)
        if best is not None:
            axes.axhline(best, color="k", ls=":", label="best possible")
        axes.set_ylabel("mean episode return")
        axes.legend(fontsize=8)
        images[task] = svg(figure)
    return images


def task_title(run: Run, task: str) -> str:
    """Return the title of a task, which is named as in metrics.csv or as in the name of a film."""
    rows = [row for rows in final_test_tables(run.results).values() for row in rows]
    labels = {name: row["label"] for row in rows for name in (str(row["task"]), safe_name(str(row["task"])))}
    return f"task {task} ({labels[task]})" if task in labels else f"task {task}"


def write_page(
    path: Path, env: str, runs: Sequence[Run], tables: Sequence[Table], figures: Sequence[Figure], best: float | None
) -> None:
    """Write a page about runs of one environment.

    `tables` and `figures` are about all runs, and left out if there is only one. `best` is the best possible return, if
    it is known and the same for all tasks. Raises a UserError if the file cannot be written.
    """
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    text = templates.get_template("page.html").render(
        env=env,
        runs=runs,
        tables=tables if len(runs) > 1 else [],
        figures=map(svg, figures if len(runs) > 1 else []),
        best=best,
        draw_curves_of=draw_curves_of,
        final_test_tables=final_test_tables,
        gif=lambda film: data_uri("gif", film.read_bytes()),
        task_title=task_title,
        number=lambda x: "" if x is None else f"{x:.4g}",
    )
    make_folder(path.parent)
    write_whole(path, text)
