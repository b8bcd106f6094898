"""report.py as a user types it, on run folders made by hand."""

import base64
import csv
import json
import re
from html.parser import HTMLParser

import imageio.v3 as iio

from conftest import CODE, TINY
from mlsh.config import Config
from mlsh.harness.finished import read_run


def write_run(folder, seed, returns, trained, env="MovementBandits-v0", **flags):
    """A run folder with these `returns` in its final test, and trained rewards `trained` [iterations][tasks]."""
    folder.mkdir()
    config = Config.defaults(env).as_dict() | {"seed": seed} | flags
    (folder / "config.json").write_text(json.dumps({"config": config}))
    test = [
        {
            "task": task,
            "label": "red",
            "return": x,
            "standard_error": 0.125,
            "share": [task, 1 - task],
            "sub_policy_returns": [x, 1.0],
            "final_distance": 0.5,
        }
        for task, x in enumerate(returns)
    ]
    results = {"env": env, "seed": seed, "env_steps": 2_000_000, "seconds": 7200.0, "test": test}
    (folder / "results.json").write_text(json.dumps(results))
    rows = ["iteration,group,task,trained_reward,env_steps,seconds"]
    rows += [
        f"{i},{g},{task},{x},{(i + 1) * 1_000_000},{10 * (i + 1)}"
        for i, of_tasks in enumerate(trained)
        for g, (task, x) in enumerate(enumerate(of_tasks))
    ]
    (folder / "metrics.csv").write_text("\n".join([*rows, ""]))
    return folder


def cells(out):
    lines = [line for line in out.splitlines() if line.startswith("|") and not line.startswith("|-")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_seeds_and_variants(command, tmp_path):
    """The best possible return is 43.8: 41.6 is 95 % of it, 42.5 is 97 % and 30 is 68.5 %."""
    runs = [
        write_run(tmp_path / "a", 1, (43, 43), [[5, 42], [42, 42]]),
        write_run(tmp_path / "b", 0, (43, 41), [[42, 42], [42, 40], [42, 42]]),  # above, below, and above again
        write_run(tmp_path / "c", 0, (43, 2), [[42, 2]], groups=1, normalise=True),
    ]
    code, out, err = command("report.py", *runs, "--csv", tmp_path / "x.csv")
    assert code == 0, err
    header, b, a, variants, preset, one_group = cells(out)
    assert header[:3] == ["seed", "return on task 0 (red)", "return on task 1 (red)"]
    assert header[4] == "env steps to 95% of the best (41.6)"
    assert b == ["0", "43.00 ± 0.12", "41.00 ± 0.12", "0.00 / 1.00 ; 1.00 / 0.00", "3.0 M (30 s)", "2.0 M (7200 s)"]
    assert a[:2] == ["1", "43.00 ± 0.12"] and a[4] == "2.0 M (20 s)"
    assert "1 of 2 runs end at 97% of the best (42.5) or more on all tasks\nlowest return: 41.00\n" in out
    assert "(41.6) on all tasks: median 2.5 M (25 s), worst 3.0 M (30 s)" in out
    assert variants[2:4] == ["all tasks ≥ 42.5", "all tasks > 30"]
    assert preset == ["`preset`", "2", "1", "2", "42.0", "2.0 M"]
    assert one_group == ["`--groups 1 --normalise`", "1", "0", "0", "2.0", "2.0 M"]
    with open(tmp_path / "x.csv", newline="") as file:
        of_b, of_c, of_a = csv.DictReader(file)
    assert [of_a[name] for name in ("seed", "task_0_return", "task_1_standard_error")] == ["1", "43", "0.125"]
    assert [of_a[f"task_1_share_{k}"] for k in (0, 1)] == ["1", "0"]
    assert [of_b[name] for name in ("env_steps_to_95", "seconds_to_95", "env_steps")] == ["3000000", "30", "2000000"]
    assert of_c["env_steps_to_95"] == of_c["seconds_to_95"] == ""  # never
    path = tmp_path / "c" / "config.json"  # an earlier version called the epochs K
    path.write_text(path.read_text().replace('"epochs": 10', '"K": 3'))
    assert cells(command("report.py", tmp_path / "c")[1])[-1][0] == "`--groups 1 -K 3 --normalise`"


def test_a_best_return_for_each_task(command, tmp_path):
    run = write_run(tmp_path / "a", 1, (90.0, 30.0), [[5, 4]], env="Fourrooms-v0")
    results = json.loads((run / "results.json").read_text())
    for row, best in zip(results["test"], (97.24, 37.28), strict=True):
        row["best_return"] = best
    (run / "results.json").write_text(json.dumps(results))
    older = write_run(tmp_path / "b", 0, (80.0, 30.0), [[5, 4]], env="Fourrooms-v0")  # without best returns
    code, out, err = command("report.py", older, run)
    assert code == 0, err
    header, *rows = cells(out)
    assert header[2:4] == ["return ± standard error", "best possible return"]
    assert {len(row) for row in rows} == {len(header)}
    assert [row[3] for row in rows] == ["", "", "97.2400", "37.2800"] and rows[2][2] == "90.0000 ± 0.1250"


def test_tasks_where_the_best_return_is_not_known_and_figures(command, tmp_path):
    trained = [[-0.2, -0.2], [-0.12, -0.15]]
    runs = [write_run(tmp_path / str(seed), seed, (-0.1, -0.2), trained, "AntBandits-v1") for seed in (1, 0)]
    code, out, err = command("report.py", *runs, "--figures", tmp_path / "figures", "--name", "x")
    assert code == 0, err
    header, *rows = cells(out)
    assert header[3] == "final distance" and [row[0] for row in rows] == ["0", "0", "1", "1"]
    assert rows[1][1:] == ["1 (red)", "-0.2000 ± 0.1250", "0.50", "1.00 / 0.00", "-0.200 / 1.000", "2.0 M", "2.0"]
    names = {"0_trained_reward_x.png", "1_trained_reward_x.png", "trained_reward_x.png"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names
    assert all(iio.imread(tmp_path / "figures" / name).std() > 10 for name in names)


def test_learning_curves_of_few_and_many_runs(tmp_path, monkeypatch):
    """Thin lines and their median for up to five runs; median and quartiles for more. The earlier port is a line."""
    monkeypatch.syspath_prepend(CODE)
    import report

    runs = [write_run(tmp_path / str(x), x, (40, 40), [[0, 0], [x, 2 * x], [9, 9]]) for x in range(6)]
    runs = [report.read_run(run) for run in runs]
    few, many, of_task = (
        report.draw_learning_curve(some, "MovementBandits-v0", task).axes[0]
        for some, task in ((runs[:3], None), (runs, None), (runs, "1"))
    )
    assert [len(axes.lines) for axes in (few, many, of_task)] == [3 + 1 + 2, 1 + 2, 1 + 2]
    assert few.lines[3].get_label() == "median of 3 runs" and few.lines[3].get_ydata().tolist() == [0, 1.5, 9]
    (band,) = of_task.collections
    assert {tuple(point) for point in band.get_paths()[0].vertices} >= {(2, 2.5), (2, 7.5)}  # quartiles of 0, 2, … 10
    assert [line.get_label() for line in of_task.lines[1:]] == ["best possible: 43.8", "earlier port: 30"]
    assert many.lines[-1].get_ydata()[0] == 27 and of_task.get_title() == "task 1 (red)"


class Page(HTMLParser):
    """A page's text, the tags that stand open, and what its images and links refer to."""

    def __init__(self, path):
        super().__init__()
        self.text, self.open, self.sources, self.links, self.ids = "", [], [], [], []
        self.feed(path.read_text())
        self.close()
        assert not self.open
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert tag not in ("script", "link", "iframe")
        self.sources += [attrs["src"]] if "src" in attrs else []
        self.links += [attrs["href"]] if "href" in attrs else []
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += f" {data}"


def test_a_page_about_one_run(command, tmp_path):
    flags = ["--out", tmp_path / "run", "--seed", 3, "--record", 1]
    assert command("train.py", *TINY, *flags)[0] == 0
    code, _, err = command("report.py", tmp_path / "run", "--html", tmp_path / "new" / "x.html")
    assert code == 0, err
    page, run = Page(tmp_path / "new" / "x.html"), read_run(tmp_path / "run")
    assert "url(" not in (tmp_path / "new" / "x.html").read_text()
    kinds = [source.partition(";base64,")[0] for source in page.sources]
    tasks = {row["task"] for row in run.metrics}
    assert kinds == ["data:image/svg+xml"] * (1 + len(tasks)) + ["data:image/gif"] * 3 * len(tasks)
    last = [
        (tmp_path / f"run/videos/00001-{key}-video-{min(tasks)}.gif") for key in ("pretrain", "warmup", "afterjoint")
    ]
    films = [base64.b64decode(source.partition(",")[2]) for source in page.sources[1 + len(tasks) :]]
    assert films[:3] == [path.read_bytes() for path in last]
    for row in run.results["test"]:
        numbers = f"{row['task']} ({row['label']}) {row['return']:.4g} ± {row['standard_error']:.2g} 43.81 "
        numbers += " / ".join(f"{x:.2f}" for x in row["share"]) + " "
        assert numbers + " / ".join(f"{x:.4g}" for x in row["sub_policy_returns"]) in page.text
    machine = run.machine
    for fact in ("commit", "processor", "threads"):
        assert machine[fact] is None or f"{fact} {machine[fact]}" in page.text
    assert f"env steps {run.results['env_steps']:,} " in page.text and "version of torch 2" in page.text
    changed, same = page.text.split("setting value preset of the environment ")[1].split(" gamma ")
    assert changed.startswith("T 7 50 seed 3 626 N 2 40 W 2 60 ") and "clip 0.4 value_coef" in same
    words = re.search(r"OMP_NUM_THREADS=1 python train.py (.+?) Final test", page.text)[1].split()
    again = command("train.py", *words, "--wandb", "disabled", "--out", tmp_path / "again")
    assert again[0] == 0 and read_run(tmp_path / "again").results["test"] == run.results["test"]


def test_a_page_about_several_runs_with_special_characters(command, tmp_path):
    """Held-out tasks, a task without a name of its own, many tasks, no films; and labels that are not markup."""
    runs = [
        write_run(tmp_path / f"<b>&{seed}", seed, (-0.125, -0.25), [[-0.2] * tasks], "AntBandits-v1")
        for seed, tasks in ((0, 2), (1, 7))
    ]
    path = runs[0] / "results.json"
    results = json.loads(path.read_text())
    for row in results["test"]:
        row["label"] = '<i>$a_$ & "b"'
    results["held_out"] = [
        results["test"][0] | {"task": [0.5, "<u>"], "return": 7.125, "share": [], "best_return": -3.5}
    ]
    path.write_text(json.dumps(results))
    code, out, err = command("report.py", *runs, "--html", tmp_path / "x.html")
    assert code == 0, err
    page = Page(tmp_path / "x.html")
    assert len(page.sources) == (1 + 2) + (1 + 2) + 1 and "film" not in page.text  # of both runs, and of each
    assert page.links == ["#run-1", "#run-2"] == [f"#{name}" for name in page.ids]
    assert "Runs: <b>&0 , <b>&1 ." in page.text
    assert (
        '0 (<i>$a_$ & "b") -0.125 ± 0.12' in page.text
        and "[0.5, '<u>'] (<i>$a_$ & \"b\") 7.125 ± 0.12 -3.5" in page.text
    )
    assert "python train.py --env AntBandits-v1 --seed 0" in page.text
    for cell in (cell for row in cells(out) for cell in row):
        assert " ".join(cell.split()) in page.text


def test_folders_without_a_finished_run(command, tmp_path):
    assert command("train.py", *TINY, "--out", tmp_path / "run")[0] == 0
    code, out, err = command("report.py", tmp_path / "run", tmp_path)
    assert (
        code == 0
        and len(cells(out)) == 2
        and f"{tmp_path} has no results of a final test of train.py and is left out" in err
    )
    ant = write_run(tmp_path / "ant", 0, (-0.1, -0.1), [[-0.1, -0.1]], "AntBandits-v1")
    for words, reason in (
        ([], "name one or more run folders"),
        ([tmp_path], "none of these runs has finished its final test"),
        ([tmp_path / "no"], "there is no run folder"),
        ([tmp_path / "run", ant, "--figures", tmp_path / "x"], "take one environment"),
        ([tmp_path / "run", ant, "--html", tmp_path / "x"], "take one environment"),
        ([ant, "--html", tmp_path / "ant"], "cannot write"),
    ):
        code, _, err = command("report.py", *words)
        assert code == 2 and reason in err and "Traceback" not in err


def test_labels_that_are_no_utf8_are_drawn_and_written(command, tmp_path):
    runs = [write_run(tmp_path / name, seed, (43, 43), [[42, 42]]) for seed, name in enumerate("ab")]
    for folder in runs:
        path = folder / "results.json"
        path.write_text(path.read_text().replace("red", "\\udc80 $x_$"))
    code, _, err = command("report.py", *runs, "--figures", tmp_path, "--html", tmp_path / "x.html")
    assert code == 0 and "\\udc80 $x_$" in (tmp_path / "x.html").read_text(encoding="utf-8"), err
