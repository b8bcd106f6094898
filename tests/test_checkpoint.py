import dataclasses
import pickle

import numpy as np
import pytest
import torch

from mlsh.baselines.rl2 import RL2Config
from mlsh.config import Config
from mlsh.envs import make_env
from mlsh.errors import UserError
from mlsh.models import Hierarchy
from mlsh.optim import Adam
from mlsh.runs import checkpoint, files
from mlsh.sampling import Streams

PROGRESS = {"iteration": 3, "env_steps": 12, "train_env_steps": 9, "seconds": 1.5, "run_id": "abc"}


@pytest.fixture
def saved(cfg):
    agent = Hierarchy.build(cfg, make_env(cfg, 1))
    agent.sub_policies.reset(Streams(0, range(cfg.num_sub_policies))(0, "sub-policies"))
    agent.normaliser.update(torch.randn(9, 6))
    optimizer = Adam(agent.sub_policies, 0.1, per_member=True)
    torch.cat([x.square().flatten() for x in agent.sub_policies(torch.randn(2, 5, 6))]).sum().backward()
    optimizer.step()
    return cfg, {"sub_policies": agent.sub_policies, "normaliser": agent.normaliser, "optimizer": optimizer}


def test_a_checkpoint_comes_back_bit_by_bit(saved, tmp_path):
    cfg, components = saved
    checkpoint.save(checkpoint.snapshot(cfg, PROGRESS, **components), tmp_path / "checkpoint.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"] == 3
    data = checkpoint.load(tmp_path, [Config])  # the run folder is enough
    assert data["config"] == cfg and {k: data[k] for k in PROGRESS} == PROGRESS
    other = Hierarchy.build(cfg, make_env(cfg, 1))
    other_optimizer = Adam(other.sub_policies, 0.1, per_member=True)
    checkpoint.restore(data, sub_policies=other.sub_policies, normaliser=other.normaliser, optimizer=other_optimizer)
    for a, b in ((components["sub_policies"], other.sub_policies), (components["normaliser"], other.normaliser)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    for one, two in zip(components["optimizer"].state.values(), other_optimizer.state.values(), strict=True):
        assert all(torch.equal(one[k], two[k]) for k in one)


def test_a_snapshot_does_not_follow_the_agent(saved):
    cfg, components = saved
    data = checkpoint.snapshot(cfg, PROGRESS, **components)
    before = data["sub_policies"]["weight1"].clone()
    components["sub_policies"].weight1.data += 1
    assert torch.equal(data["sub_policies"]["weight1"], before)


def test_a_failed_save_leaves_the_old_file(saved, tmp_path, monkeypatch):
    cfg, components = saved
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(checkpoint.snapshot(cfg, PROGRESS, **components), path)
    old = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(UserError, match="free disk space"):
        checkpoint.save({}, path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_a_file_that_is_no_checkpoint_is_refused_and_not_executed(saved, tmp_path, capsys):
    cfg, components = saved
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(checkpoint.snapshot(cfg, PROGRESS, **components), path)
    good = path.read_bytes()
    torch.save({"format": 1, "kind": "mlsh", "config": Evil()}, tmp_path / "evil.pt")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.pt")
    snapshot = checkpoint.snapshot(cfg, PROGRESS, **components)
    torch.save(snapshot | {"iteration": "3"}, tmp_path / "text.pt")
    torch.save(snapshot | {"config": snapshot["config"] | {"num_sub_policies": "two"}}, tmp_path / "two.pt")
    torch.save(snapshot | {"format": 99}, tmp_path / "newer.pt")
    files = {
        "truncated": good[: len(good) // 2],
        "empty": b"",
        "text": b"hello",
        "pickle": pickle.dumps(Evil()),
        "evil": (tmp_path / "evil.pt").read_bytes(),
        **{name: (tmp_path / f"{name}.pt").read_bytes() for name in ("foreign", "text", "two", "newer")},
    }
    for name, content in files.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match="more than plain data" if name == "evil" else r"checkpoint\.pt"):
            checkpoint.load(path, [Config])
    assert "code ran" not in capsys.readouterr().out
    path.unlink()
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.load(tmp_path, [Config])


def test_content_that_does_not_fit_is_refused(saved, tmp_path):
    cfg, components = saved
    good = checkpoint.snapshot(cfg, PROGRESS, **components)
    not_finite = good["sub_policies"] | {"weight1": torch.tensor(torch.nan)}
    for name, value in (("iteration", -5), ("sub_policies", not_finite)):
        torch.save(good | {name: value}, tmp_path / "checkpoint.pt")
        with pytest.raises(UserError, match="damaged"):
            checkpoint.load(tmp_path, [Config])
    good["config"] = cfg
    for name, value in (("sub_policies", 3), ("optimizer", 3)):
        with pytest.raises(UserError, match="does not fit"):
            checkpoint.restore(good | {name: value}, **components)
    good["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)  # Adam would read beyond its end
    with pytest.raises(UserError, match="other shapes"):
        checkpoint.restore(good, optimizer=components["optimizer"])


def test_a_flipped_bit_is_found_or_harmless(saved, tmp_path):
    cfg, components = saved
    path = tmp_path / "checkpoint.pt"
    snapshot = checkpoint.snapshot(cfg, PROGRESS, **components)
    checkpoint.save(snapshot, path)
    good, draw, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(100):
        at, content = draw.integers(len(good)), bytearray(good)
        content[at] ^= 1 << draw.integers(8)
        path.write_bytes(content)
        try:
            data = checkpoint.load(path, [Config])
        except UserError:
            refused += 1
        else:
            torch.testing.assert_close(data["sub_policies"], snapshot["sub_policies"], rtol=0, atol=0)
            assert data["config"] == cfg and {k: data[k] for k in PROGRESS} == PROGRESS
    assert refused > 60  # the others hit padding


def test_a_checkpoint_of_other_sizes_is_refused(saved):
    cfg, components = saved
    data = checkpoint.snapshot(cfg, PROGRESS, **components) | {"config": cfg}
    other = dataclasses.replace(cfg, num_sub_policies=3)
    with pytest.raises(UserError, match="does not fit"):
        checkpoint.restore(data, sub_policies=Hierarchy.build(other, make_env(cfg, 1)).sub_policies)


def test_a_checkpoint_of_another_kind_is_refused(saved, tmp_path):
    cfg, components = saved
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(checkpoint.snapshot(cfg, PROGRESS, **components), path)
    assert checkpoint.load(path, [RL2Config, Config])["kind"] == "mlsh"
    with pytest.raises(UserError, match="belongs to a run of kind 'mlsh'; give one of kind rl2"):
        checkpoint.load(path, [RL2Config])


@pytest.mark.parametrize(
    ("learned", "kind"), [({"W": 4, "U": 2}, Config), ({"iterations": 7, "episodes": 2}, RL2Config)]
)
def test_checkpoints_of_the_first_versions_are_read(saved, tmp_path, learned, kind):
    """They named the epochs K, had no kind, and did not count the training env steps."""
    cfg, components = saved
    data = checkpoint.snapshot(cfg, PROGRESS | {"env_steps": 900}, **components)
    del data["kind"], data["train_env_steps"]
    torch.save(data | {"config": {"env": "MovementBandits-v0", "K": 3, **learned}}, tmp_path / "checkpoint.pt")
    data = checkpoint.load(tmp_path, [Config, RL2Config])
    assert type(data["config"]) is kind and data["config"].epochs == 3
    assert kind is not Config or data["config"].compile == "off"  # such a run continues uncompiled
    assert data["train_env_steps"] == (600 if kind is Config else 900)  # W + U of W + U + 3 rollouts


def test_a_component_that_an_older_version_did_not_save_is_named(saved):
    cfg, components = saved
    data = checkpoint.snapshot(cfg, PROGRESS, **components) | {"config": cfg}
    del data["optimizer"]
    with pytest.raises(UserError, match="older version, without optimizer: it cannot be continued"):
        checkpoint.restore(data, **components)


def test_format_1_is_split_into_a_state_for_each_member(saved, tmp_path):
    cfg, components = saved
    together = torch.optim.Adam(components["sub_policies"].parameters(), 0.1)
    together.step()
    data = checkpoint.snapshot(cfg, PROGRESS, **components | {"optimizer": together}) | {"format": 1}
    torch.save(data, tmp_path / "checkpoint.pt")
    optimizer = Adam(components["sub_policies"], 0.1, per_member=True)
    checkpoint.restore(checkpoint.load(tmp_path, [Config]), optimizer=optimizer)
    rows = iter(optimizer.param_groups[0]["params"])
    for p in components["sub_policies"].parameters():
        for k in range(cfg.num_sub_policies):
            state = optimizer.state[next(rows)]
            assert torch.equal(state["exp_avg"], together.state[p]["exp_avg"][k]) and state["step"] == 1
