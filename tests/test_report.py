"""report.py as a user types it, on run folders made by hand."""

import json

import imageio.v3 as iio

from conftest import TINY
from mlsh.config import Config


def write_run(folder, seed, returns, trained, env="MovementBandits-v0", **flags):
    """A run folder whose final test had `returns`; `trained`: trained rewards [iterations][tasks]."""
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
    """41.6 is 95 % of the best possible return; 42.5 and 30 are what a run has to have learned of both tasks."""
    runs = [
        write_run(tmp_path / "a", 1, (43, 43), [[5, 42], [42, 42]]),
        write_run(tmp_path / "b", 0, (43, 41), [[42, 42], [42, 40], [42, 42]]),  # above, below, and above again
        write_run(tmp_path / "c", 0, (43, 2), [[42, 2]], groups=1, normalise=True),
    ]
    code, out, err = command("report.py", *runs)
    assert code == 0, err
    header, b, a, variants, preset, one_group = cells(out)
    assert header[:3] == ["seed", "task 0 (red)", "task 1 (red)"] and header[4] == "to 41.6: env steps"
    assert b == ["0", "43.00 ± 0.12", "41.00 ± 0.12", "0.00 / 1.00 ; 1.00 / 0.00", "3.0 M", "30", "2.0 M", "7200"]
    assert a[:2] == ["1", "43.00 ± 0.12"] and a[4:6] == ["2.0 M", "20"]
    assert "median to 41.6: 2.5 M env steps, 25 s" in out and "worst to 41.6: 3.0 M env steps, 30 s" in out
    assert variants[2:4] == ["all tasks ≥ 42.5", "all tasks > 30"]
    assert preset == ["`preset`", "2", "1", "2", "42.0", "2.0 M"]
    assert one_group == ["`--groups 1 --normalise`", "1", "0", "0", "2.0", "2.0 M"]
    path = tmp_path / "c" / "config.json"  # as an earlier version named the epochs
    path.write_text(path.read_text().replace('"epochs": 10', '"K": 3'))
    assert cells(command("report.py", tmp_path / "c")[1])[-1][0] == "`-K 3 --groups 1 --normalise`"


def test_a_best_return_for_each_task(command, tmp_path):
    run = write_run(tmp_path / "a", 1, (90.0, 30.0), [[5, 4]], env="Fourrooms-v0")
    results = json.loads((run / "results.json").read_text())
    for row, best in zip(results["test"], (97.24, 37.28), strict=True):
        row["best_return"] = best
    (run / "results.json").write_text(json.dumps(results))
    older = write_run(tmp_path / "b", 0, (80.0, 30.0), [[5, 4]], env="Fourrooms-v0")  # of a version that did not tell
    code, out, err = command("report.py", older, run)
    assert code == 0, err
    header, *rows = cells(out)
    assert header[2:4] == ["return", "at best"] and {len(row) for row in rows} == {len(header)}
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


def test_what_is_no_finished_run(command, tmp_path):
    assert command("train.py", *TINY, "--out", tmp_path / "run")[0] == 0
    code, out, err = command("report.py", tmp_path / "run", tmp_path)
    assert code == 0 and len(cells(out)) == 2 and f"{tmp_path} has no results of train.py, left out" in err
    ant = write_run(tmp_path / "ant", 0, (-0.1, -0.1), [[-0.1, -0.1]], "AntBandits-v1")
    for words, reason in (
        ([], "name a run folder"),
        ([tmp_path], "none of the runs has come to its final test"),
        ([tmp_path / "no"], "there is no run folder"),
        ([tmp_path / "run", ant, "--figures", tmp_path / "x"], "a figure is of one environment"),
    ):
        code, _, err = command("report.py", *words)
        assert code == 2 and reason in err and "Traceback" not in err
