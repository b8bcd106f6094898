import dataclasses

import pytest

from mlsh.config import PRESETS, Config, parse
from mlsh.errors import UserError


def nothing_saved(folder):
    raise UserError(f"there is no checkpoint at {folder}")


def test_defaults_are_the_environments_preset_and_flags_override_them():
    cfg, saved = parse([], nothing_saved)
    assert saved is None and cfg == Config(**PRESETS["MovementBandits-v0"])
    cfg, _ = parse("--env MovementBandits4-v0 -W 7 --high-len 5".split(), nothing_saved)
    assert (cfg.num_low, cfg.W, cfg.high_len) == (4, 7, 5)
    cfg, _ = parse("--env mlsh:MovementBandits-v0".split(), nothing_saved)
    assert cfg.groups == PRESETS["MovementBandits-v0"]["groups"]


def test_the_ports_flags_are_understood():
    line = "-N 9 -W 3 -U 2 --tasks 4 -K 5 -T 6 --high_len 2 --bs 8 --llr .1 --hlr .2 --gamma .3 --lam .4 --epsilon .5"
    line += " --c1 .6 --c2 .7 --c2_low .8 --record 11 --seed 12 --num_low 3 --env MovementBandits-v0"
    cfg, _ = parse(line.split(), nothing_saved)
    values = [
        getattr(cfg, name) for name in ("N", "W", "U", "tasks", "K", "T", "high_len", "bs", "llr", "hlr", "gamma")
    ]
    assert values == [9, 3, 2, 4, 5, 6, 2, 8, 0.1, 0.2, 0.3]
    values = [getattr(cfg, name) for name in ("lam", "epsilon", "c1", "c2", "c2_low", "record", "seed", "num_low")]
    assert values == [0.4, 0.5, 0.6, 0.7, 0.8, 11, 12, 3]


BAD = [
    *(
        (flag, "-1")
        for flag in ("-W", "-U", "--record", "--fade", "--seed", "--explore", "--c1", "--c2_low", "--gamma")
    ),
    *((flag, "0") for flag in ("-N", "-K", "-T", "--tasks", "--high_len", "--bs", "--groups", "--hidden")),
    *((flag, "-1") for flag in ("--num_low", "--sim_threads")),
    *(
        (flag, value)
        for flag in ("--llr", "--hlr", "--epsilon", "--reward_scale")
        for value in ("0", "-1", "nan", "inf")
    ),
    ("--test_episodes", "1"),
    ("--device", "meta"),
    ("--gamma", "1.01"),
    ("--lam", "nan"),
    ("--c2", "inf"),
    ("--log_std", "nan"),
    ("--explore", "2"),
    ("--device", "abacus"),
    ("--device", "cuda:99"),
]


@pytest.mark.parametrize(("flag", "value"), BAD)
def test_values_that_cannot_work_are_refused_by_name(flag, value):
    with pytest.raises(UserError) as error:
        parse([flag, value], nothing_saved)
    assert str(error.value).startswith(f"{flag} ") and value in str(error.value)
    assert "use " in str(error.value)


def test_w_and_u_both_0_are_refused():
    with pytest.raises(UserError, match="-W 0 and -U 0"):
        parse("-W 0 -U 0".split(), nothing_saved)
    assert parse("-W 0 -U 1".split(), nothing_saved)[0].W == 0
    assert parse("-W 1 -U 0".split(), nothing_saved)[0].U == 0


def test_without_sub_policies_nothing_is_joint():
    with pytest.raises(UserError, match="-U is 1: .*use -U 0"):
        parse("--num_low 0 -U 1".split(), nothing_saved)
    cfg, _ = parse("--num_low 0 -U 0 -N 4 -T 50 --bs 100".split(), nothing_saved)
    assert cfg.master_ppo["parts"] == 2  # a decision at each of 200 steps


def test_a_flag_that_an_old_checkpoint_lacks_has_its_default():
    values = Config(N=7).as_dict()
    del values["sim_threads"]
    assert Config.from_dict(values) == Config(N=7)
    for wrong in ({"N": "7"}, {"abacus": 1}):
        with pytest.raises(TypeError):
            Config.from_dict(values | wrong)


def test_continuing_takes_the_checkpoints_configuration():
    run = dataclasses.replace(Config(), W=7, tasks=5)
    saved_run = {"config": run, "iteration": 4}
    cfg, saved = parse("-c --out there --tasks 9 --record 0 --wandb disabled -W 7".split(), lambda _: saved_run)
    assert saved == saved_run
    assert (cfg.W, cfg.tasks, cfg.record, cfg.wandb, cfg.out, cfg.resume) == (7, 9, 0, "disabled", "there", True)
    for flags in ("-W 8", "--seed 1", "--env MovementBandits4-v0", "--llr 1.0"):
        with pytest.raises(UserError, match=f"^{flags} contradicts"):
            parse(f"-c --out there {flags}".split(), lambda _: saved_run)
    with pytest.raises(UserError, match="--tasks is 3: the run has had 4"):
        parse("-c --out there --tasks 3".split(), lambda _: saved_run)
    with pytest.raises(UserError, match="add --out"):
        parse(["-c"], nothing_saved)
    with pytest.raises(UserError, match="no checkpoint"):
        parse("-c --out there".split(), nothing_saved)


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"], nothing_saved)
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for field in dataclasses.fields(Config):
        assert f"--{field.name}" in text
    assert "(paper: K)" in text and "(paper: N)" in text


def test_derived_values():
    cfg = dataclasses.replace(Config(), N=40, T=50, high_len=10, bs=64, fade=10, c2_low=0.5)
    assert cfg.master_ppo["parts"] == 4  # 200 decisions in minibatches of at most 64
    assert dataclasses.replace(cfg, T=51).master_ppo["parts"] == 4  # 240
    assert [cfg.faded(i) for i in (0, 5, 10, 99)] == [1, 0.5, 0, 0]
    assert cfg.low_ppo(5)["c2"] == 0.25
    assert dataclasses.replace(cfg, fade=0).faded(99) == 1
