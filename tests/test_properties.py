"""Whatever the flags and the environment: a run trains, or it is refused before anything is written."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import TINY
from foreign import KINDS
from mlsh.config import Config
from mlsh.envs import env_ids
from mlsh.runs import checkpoint
from mlsh.runs.metrics import read_metrics

FLAGS = {
    "--env": st.sampled_from([*env_ids(), "CartPole-v1", "NoSuch-v0", *(f"foreign:{kind}" for kind in KINDS)]),
    "-N": st.integers(0, 3),
    "-W": st.integers(-1, 2),
    "-U": st.integers(0, 2),
    "-K": st.integers(1, 2),
    "-T": st.integers(1, 6),
    "--tasks": st.integers(1, 2),
    "--high_len": st.integers(1, 8),
    "--num_sub_policies": st.integers(0, 3),
    "--groups": st.integers(1, 3),
    "--master_minibatch": st.integers(1, 9),
    "--sub_minibatches": st.integers(1, 20),
    "--blind": st.integers(0, 5),
    "--hidden": st.integers(1, 4),
    "--sub_lr": st.sampled_from(["0", "1e-9", "0.1", "1e30", "nan"]),
    "--gamma": st.sampled_from(["0", "0.9", "1", "1.1"]),
    "--lam": st.sampled_from(["0", "1"]),
    "--sub_entropy": st.sampled_from(["0", "1"]),
    "--target_kl": st.sampled_from(["0", "1e-6"]),
    "--explore": st.sampled_from(["0", "0.5", "1", "-0.1"]),
    "--fade": st.integers(0, 2),
    "--reward_scale": st.sampled_from(["1e-9", "1", "1e9"]),
    "--test_episodes": st.integers(1, 3),
    "--normalise": st.none(),
    "--no_bootstrap": st.none(),
}
SOME = st.fixed_dictionaries({}, optional=FLAGS)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(flags=SOME)
def test_every_combination_trains_or_is_refused(command, tmp_path_factory, flags):
    folder = tmp_path_factory.mktemp("run") / "out"
    typed = [str(word) for flag in flags.items() for word in flag if word is not None]
    code, _, err = command("train.py", *TINY, "--record", 0, "--out", folder, *typed)
    assert "Traceback" not in err
    if code == 0:
        results = json.loads((folder / "results.json").read_text())
        last = read_metrics(folder)[-1]
        assert results["iteration"] == checkpoint.load(folder, [Config])["iteration"] == int(last["iteration"]) + 1
        assert results["env_steps"] == int(last["env_steps"]) > 0
        shares = [row["share"] for row in results["test"]]
        assert all(abs(sum(share) - 1) < 1e-3 for share in shares if share)
    elif "is not finite" in err:  # learning rates that only running shows to be absurd
        assert all(x.isfinite().all() for x in checkpoint.load(folder, [Config])["sub_policies"].values())
    else:
        assert code in (1, 2) and err.strip() and not folder.exists()
