"""What is compiled learns what the same function learns as it is, and a run can do without."""

import dataclasses
import json
import math
import tempfile

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from conftest import TINY
from mlsh import compiled, minibatches
from mlsh.config import UNCOMPILED, Config
from mlsh.minibatches import MinibatchLayout
from mlsh.optim import Adam
from mlsh.ppo import PPOSettings, gradients, update
from mlsh.runs import checkpoint
from mlsh.runs.metrics import read_metrics
from test_ppo import actor_critic, batch, rngs


@pytest.fixture(autouse=True)
def nothing_compiled():
    compiled.compiled.cache_clear()
    compiled.FAILED.clear()
    yield
    compiled.compiled.cache_clear()
    compiled.FAILED.clear()
    torch._dynamo.reset()


def learned(space, is_compiled, members=(0, 1, 1, 0, 1, 1, 0, 0, 1), blind=0, **more):
    policy = actor_critic(max(members) + 1, space, actor_sees=slice(blind, None))
    policy.compiled = is_compiled
    settings = PPOSettings(minibatches=2, epochs=3, entropy_coef=0.01, **more)
    stats = update(policy, Adam(policy, 1e-3, per_member=True), batch(policy, members), rngs(1), settings)
    return policy, stats


@pytest.mark.slow
@pytest.mark.parametrize("blind", [0, 1])
@pytest.mark.parametrize("space", [Discrete(4), Box(-1, 1, (2,))], ids=["discrete", "continuous"])
def test_the_compiled_update_is_the_eager_one_but_for_rounding(space, blind):
    uneven = [0] * 100 + [1, 2, 3] * 2 + [4, 5]
    assert len(MinibatchLayout(np.array(uneven), np.zeros(108, int), 6, 2).member) == 10  # rows are split
    widths = ([0, 1, 1, 0, 1, 1, 0, 0, 1], [1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 1])
    for members in (*widths, uneven) if isinstance(space, Box) and not blind else widths:
        (eager, told), (fast, told_fast) = (learned(space, c, members, blind, target_kl=1e9) for c in (False, True))
        for name, parameter in eager.named_parameters():
            torch.testing.assert_close(getattr(fast, name), parameter, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(told_fast, told, rtol=1e-3, atol=1e-5, equal_nan=True)
    again, _ = learned(space, True, members, blind, target_kl=1e9)
    assert not compiled.FAILED
    assert all(torch.equal(getattr(fast, name), p) for name, p in again.named_parameters())


@pytest.mark.slow
def test_other_sizes_and_coefficients_are_not_compiled_again():
    torch._dynamo.utils.counters.clear()
    policy = actor_critic(2)
    for width, c2, graphs in ((3, 0.02, 1), (5, 0.02, 1), (9, 0.019, 2), (7, 0.018, 2), (8, 0.017, 2)):
        samples = batch(policy, [0, 1] * 4 * width)
        compiled.mark_any_size(samples)
        index, weight = torch.zeros(2, width, dtype=torch.long), torch.full((2, width), 1 / width)
        compiled.compiled(gradients)(policy, samples, index, weight, None, 0.2, 3.0, 0.5, c2)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    for width, R, c2 in ((4, 6, 0.016), (5, 9, 0.015), (7, 3, 0.014)):  # one more graph, where rows are split
        index, weight = torch.zeros(R, width, dtype=torch.long), torch.full((R, width), 1 / width)
        rows = torch.eye(2)[torch.arange(R) % 2]
        compiled.compiled(gradients)(policy, samples, index, weight, rows, 0.2, 3.0, 0.5, c2)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


@pytest.fixture
def no_compiler(monkeypatch):
    def broken(function, **options):
        def call(*args, **kwargs):
            raise torch._dynamo.exc.InternalTorchDynamoError("no compiler\nhere")

        return call

    monkeypatch.setattr(torch, "compile", broken)


def test_where_torch_cannot_compile_a_run_learns_as_ever(no_compiler, capsys):
    eager, _ = learned(None, False)
    fallen, _ = learned(None, True)
    assert all(torch.equal(getattr(fallen, name), p) for name, p in eager.named_parameters())
    assert capsys.readouterr().err.splitlines() == [
        "--compile: torch could not compile (no compiler); continuing without"
    ]


def test_a_run_whose_compiler_fails_says_that_it_was_not_compiled(no_compiler, command, tmp_path):
    code, _, err = command("train.py", *TINY, "--compile", "on", "--out", tmp_path / "run")
    assert code == 0 and err.count("--compile: torch could not compile") == 1
    assert json.loads((tmp_path / "run/config.json").read_text())["compiler_failed"] == "no compiler"
    assert command("train.py", "-c", "--compile", "on", "--out", tmp_path / "run")[0] == 0


def test_auto_compiles_after_so_many_minibatches_where_there_is_a_compiler(monkeypatch):
    cfg = Config(W=2, U=1, tasks=3, epochs=5, N=10, T=50, high_len=10, master_minibatch=25, sub_minibatches=7)
    assert cfg.minibatches == 5 * ((2 + 1) * 2 + 7)  # 50 decisions are two minibatches
    assert cfg.minibatches * (cfg.compiled_from - 1) < UNCOMPILED <= cfg.minibatches * cfg.compiled_from
    monkeypatch.setattr("mlsh.config.can_compile", lambda device: device == "cpu")
    for more, resolved, first in (
        ({}, "auto", cfg.compiled_from),
        ({"tasks": 10**6}, "auto", cfg.compiled_from),
        ({"device": "odd"}, "off", math.inf),
        ({"compile": "off"}, "off", math.inf),
        ({"compile": "on"}, "on", 0),
    ):
        chosen = dataclasses.replace(cfg, **more)
        chosen.resolve()
        assert (chosen.compile, chosen.compiled_from) == (resolved, first)


def test_a_run_that_is_continued_for_longer_compiles_from_the_same_outer_iteration(command, tmp_path, monkeypatch):
    """What is compiled learns something else here, so that the results show where it begins."""

    def compile_to_something_else(function, **options):
        def call(*args, **kwargs):
            gradients, kl = function(*args, **kwargs)
            return [-x for x in gradients], kl

        return call

    monkeypatch.setattr(torch, "compile", compile_to_something_else)
    monkeypatch.setattr("mlsh.config.UNCOMPILED", 8 * 2 * ((2 + 1) * 1 + 30))  # the minibatches of 8 outer iterations
    whole, parts, eager = (tmp_path / name for name in ("whole", "parts", "eager"))
    twelve = [*TINY, "--tasks", 12, "--record", 0]
    assert command("train.py", *twelve, "--out", whole)[0] == 0
    assert command("train.py", *twelve, "--tasks", 5, "--out", parts)[0] == 0
    assert command("train.py", "-c", "--tasks", 12, "--wandb", "disabled", "--out", parts)[0] == 0
    assert command("train.py", *twelve, "--compile", "off", "--out", eager)[0] == 0
    measured = [[{**row, "seconds": ""} for row in read_metrics(folder)] for folder in (whole, parts, eager)]
    before = 8 * 2  # rows, one per group
    assert measured[0] == measured[1]
    assert measured[0][:before] == measured[2][:before] and measured[0][before] != measured[2][before]
    learned = [torch.load(x / "checkpoint.pt", weights_only=True)["sub_policies"] for x in (whole, parts, eager)]
    assert all(torch.equal(x, learned[1][name]) for name, x in learned[0].items())
    assert not torch.equal(learned[0]["weight1"], learned[2]["weight1"])


def test_a_compiler_is_looked_for(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not compiled.can_compile("cpu")
    monkeypatch.setattr("shutil.which", {"g++": "/bin/g++", "clang++": "/bin/clang++"}.get)
    assert compiled.can_compile("cpu")
    monkeypatch.setenv("CXX", "icpc")  # torch takes this one and no other
    assert not compiled.can_compile("cpu")


def test_compiled_code_is_kept_where_only_its_user_can_write(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = compiled.private_cache()
    assert folder == tmp_path / "cache" / "mlsh" and folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    assert compiled.private_cache() == folder and folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)  # somebody else may have put something there
    others = [compiled.private_cache()]
    folder.chmod(0o700)
    monkeypatch.setattr(compiled.os, "geteuid", lambda: folder.stat().st_uid + 1)
    others.append(compiled.private_cache())
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which its specification tells programs to ignore
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert compiled.private_cache() == tmp_path / "home" / ".cache" / "mlsh"
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    others.append(compiled.private_cache())
    assert len({*others, folder}) == 4 and all(other.stat().st_mode & 0o777 == 0o700 for other in others)


def test_what_the_user_has_set_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "chosen")
    compiled.compiled(gradients)
    assert compiled.os.environ["TORCHINDUCTOR_CACHE_DIR"] == "chosen"
    compiled.compiled.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for value in (None, f"{tempfile.gettempdir()}/torchinductor_me"):  # the second is set by torch itself
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        if value:
            monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", value)
        compiled.compiled(gradients)
        assert compiled.os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "mlsh")
        compiled.compiled.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("saving", [minibatches.SAVING, 0], ids=["whole rows", "split rows"])
def test_compiled_runs_repeat_to_the_bit_also_when_continued(command, tmp_path, monkeypatch, saving):
    splits, choose_rows = [], minibatches.rows_of_members

    def rows_of_members(count):
        rows, width = choose_rows(count)
        if count.shape[1] == 3:  # the update of the sub-policies, not of the two masters
            splits.append(rows.max() > 1)
        return rows, width

    monkeypatch.setattr(minibatches, "SAVING", saving)
    monkeypatch.setattr(minibatches, "rows_of_members", rows_of_members)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    flags = ["--compile", "on", "--num_sub_policies", 3, "--sub_minibatches", 2]
    assert command("train.py", *TINY, *flags, "--out", whole)[0] == 0
    assert splits[-1] == (saving == 0)  # in the outer iteration with which the other run continues
    assert command("train.py", *TINY, *flags, "--tasks", 1, "--out", halves)[0] == 0
    assert command("train.py", "-c", "--tasks", 2, "--wandb", "disabled", "--out", halves)[0] == 0
    one, two = (torch.load(folder / "checkpoint.pt", weights_only=True)["sub_policies"] for folder in (whole, halves))
    assert all(torch.equal(one[name], two[name]) for name in one)
    for folder in (whole, halves):
        assert json.loads((folder / "config.json").read_text())["config"]["compile"] == "on"


def test_a_run_without_a_compiler_says_that_it_is_uncompiled(command, tmp_path, monkeypatch):
    monkeypatch.setattr("mlsh.config.can_compile", lambda device: False)
    assert command("train.py", *TINY, "--out", tmp_path / "run")[0] == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["compile"] == "off"


def test_one_machine_without_a_compiler_does_not_end_compiling_for_good(command, tmp_path, monkeypatch):
    monkeypatch.setattr("mlsh.config.can_compile", lambda device: True)
    assert command("train.py", *TINY, "--out", tmp_path)[0] == 0
    monkeypatch.setattr("mlsh.config.can_compile", lambda device: False)
    assert command("train.py", "-c", "--tasks", 3, "--wandb", "disabled", "--out", tmp_path)[0] == 0
    assert checkpoint.load(tmp_path, [Config])["config"].compile == "auto"
