import dataclasses
from typing import Annotated

import pytest
import tyro
import yaml
from wandb.sdk.launch.sweeps import utils as sweeps

from conftest import CODE
from mlsh.baselines.option_critic import OptionCriticConfig
from mlsh.baselines.rl2 import RL2Config
from mlsh.config import Config
from mlsh.errors import NoCheckpoint, UserError
from mlsh.settings import cli
from mlsh.settings import parse as parse_kind


def nothing_saved(folder):
    raise NoCheckpoint(f"there is no checkpoint at {folder}")


def parse(argv, load=nothing_saved):
    return parse_kind(Config, argv, load)


BAD = [
    *(
        (flag, "-1")
        for flag in (
            "-W",
            "-U",
            "--record",
            "--fade",
            "--seed",
            "--explore",
            "--value_coef",
            "--sub_entropy",
            "--gamma",
        )
    ),
    *(
        (flag, "0")
        for flag in ("-N", "-K", "-T", "--tasks", "--high_len", "--master_minibatch", "--groups", "--hidden")
    ),
    *((flag, "-1") for flag in ("--num_sub_policies", "--sim_threads")),
    *(
        (flag, value)
        for flag in ("--sub_lr", "--master_lr", "--clip", "--reward_scale")
        for value in ("0", "-1", "nan", "inf")
    ),
    ("--test_episodes", "1"),
    ("--device", "meta"),
    ("--gamma", "1.01"),
    ("--lam", "nan"),
    ("--master_entropy", "inf"),
    ("--log_std", "nan"),
    ("--explore", "2"),
    ("--device", "abacus"),
    ("--device", "cuda:99"),
]


def test_a_number_in_other_digits_is_no_traceback():
    with pytest.raises(UserError, match="T"):
        parse(["-T", "²"])


@pytest.mark.parametrize(("flag", "value"), BAD)
def test_values_that_cannot_work_are_refused_by_name(flag, value):
    with pytest.raises(UserError) as error:
        parse([flag, value])
    assert str(error.value).startswith(f"{flag} ") and value in str(error.value)
    assert "use " in str(error.value)


def test_a_flag_that_an_old_checkpoint_lacks_has_its_default():
    values = Config(N=7).as_dict()
    del values["sim_threads"]
    assert Config.from_dict(values) == Config(N=7)
    for wrong in ({"N": "7"}, {"abacus": 1}):
        with pytest.raises(UserError):
            Config.from_dict(values | wrong)


def test_continuing_takes_the_checkpoints_configuration():
    run = dataclasses.replace(Config(), W=7, tasks=5)
    saved_run = {"config": run, "iteration": 4}
    cfg, saved = parse("-c --out there --tasks 9 --record 0 --wandb disabled -W 7".split(), lambda _: saved_run)
    assert saved == saved_run
    assert (cfg.W, cfg.tasks, cfg.record, cfg.wandb, cfg.out, cfg.resume) == (7, 9, 0, "disabled", "there", True)
    for flags in ("-W 8", "--seed 1", "--env MovementBandits4-v0", "--sub_lr 1.0"):
        with pytest.raises(UserError, match=f"^{flags} contradicts"):
            parse(f"-c --out there {flags}".split(), lambda _: saved_run)
    with pytest.raises(UserError, match="--tasks is 3: the run has done 4"):
        parse("-c --out there --tasks 3".split(), lambda _: saved_run)
    with pytest.raises(UserError, match="add --out"):
        parse(["-c"])
    cfg, saved = parse("-c --out there --env AntBandits-v1 -W 3".split())  # there is nothing yet
    preset = Config.defaults("AntBandits-v1")
    assert saved is None and cfg == dataclasses.replace(preset, W=3, resume=True, out="there")


def test_an_automatic_setting_is_what_the_run_has_found():
    for found in ("on", "off"):
        saved_run = {"config": dataclasses.replace(Config(), compile=found), "iteration": 4}
        assert parse("-c --out there --compile auto".split(), lambda _, run=saved_run: run)[0].compile == found


def test_truth_values_are_read_as_the_sweeps_of_wandb_send_them():
    def of(typed, **saved):
        run = {"config": dataclasses.replace(Config(), **saved), "iteration": 0}
        cfg, _ = parse(typed.split(), lambda _: run)
        return cfg.normalise, cfg.tensorboard, cfg.resume

    assert of("--normalise=True --tensorboard=true --resume=False") == (True, True, False)
    assert of("--normalise=False --tensorboard=false") == (False, False, False)
    assert of("--resume=True --out x --tensorboard=False", tensorboard=True)[1:] == (False, True)
    assert of("-c --out x --tensorboard", tensorboard=True)[1:] == (True, True)
    assert parse(["--wandb_project=True"])[0].wandb_project == "True"


def test_truth_values_are_read_by_every_kind_of_command():
    @dataclasses.dataclass
    class Args:
        plain: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
        pair: bool = True

    def function(pair: bool = True, name: str = ""):
        return pair, name

    assert cli(Args, args=["--plain=True", "--pair=False"]) == Args(True, False)
    assert cli(Args, args=["--plain=False", "--pair=True"]) == Args(False, True)
    assert cli(function, args=["--pair=False", "--name=True"])() == (False, "True")
    with pytest.raises(UserError, match="--pair=maybe|maybe"):
        cli(Args, args=["--pair=maybe"])


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for name in Config().as_dict():
        assert f"--{name}" in text
    assert "(paper: K)" in text and "(paper: N)" in text


def test_every_kind_of_run_continues_alike():
    """RL² has another length, and no films."""
    run = RL2Config(iterations=5)
    saved = {"config": run, "iteration": 4}
    cfg, _ = parse_kind(RL2Config, "-c --out there --iterations 9".split(), lambda _: saved)
    assert cfg.iterations == 9
    hardware, tracking = "--copies, --env_workers, --device, --sim_threads", "--wandb, --wandb_project, --tensorboard"
    allowed = f"--iterations, {hardware}, {tracking}, --save_seconds"
    with pytest.raises(UserError, match=f"only {allowed} may"):
        parse_kind(RL2Config, "-c --out there --lr 0.5".split(), lambda _: saved)
    with pytest.raises(UserError, match="--iterations is 3: the run has done 4"):
        parse_kind(RL2Config, "-c --out there --iterations 3".split(), lambda _: saved)


@pytest.mark.parametrize("kind", [Config, RL2Config, OptionCriticConfig])
def test_a_constraint_stands_on_every_number(kind):
    """A field without one would take any number."""
    for field in dataclasses.fields(kind):
        if field.type in (int, float):
            pytest.fail(f"{field.name} has no constraint")
    for value in (-1, float("nan")):
        bad = {field.name: value for field in dataclasses.fields(kind) if type(field.default) in (int, float)}
        for name, wrong in bad.items():
            if name != "log_std" or value != -1:
                with pytest.raises(UserError, match=f"^{kind.flag(name)} is {wrong}: use "):
                    dataclasses.replace(kind(), **{name: wrong}).validate()


@pytest.mark.parametrize(
    ("flags", "variables", "mode"),
    [
        ("", {}, "auto"),
        ("", {"WANDB_MODE": "offline"}, "offline"),
        ("", {"WANDB_MODE": "dryrun"}, "offline"),
        ("", {"WANDB_MODE": ""}, "auto"),
        ("", {"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, "disabled"),
        ("", {"WANDB_DISABLED": "false"}, "auto"),
        ("--wandb offline", {"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, "offline"),
    ],
)
def test_wandbs_own_variables_hold_where_no_flag_says_otherwise(monkeypatch, flags, variables, mode):
    for name in ("WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert parse(flags.split())[0].wandb_mode == mode


def test_an_unknown_wandb_mode_is_refused(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(UserError, match="^.WANDB_MODE is sometimes: use online, offline or disabled"):
        parse([])


UNREADABLE = {
    "-N many": "-N/--N: invalid literal for int() with base 10: 'many'",
    "--no_such_flag 1": "Unrecognized options: --no_such_flag, 1",
    "--gama .5": "did you mean --gamma?",
    "--wandbb offline": "did you mean --wandb?",
    "--wandb maybe": "invalid choice 'maybe' for argument '--wandb'",
    "--seed": "Missing value for argument '--seed'",
    "--env": "Missing value for argument '--env'",
    "-c --out": "-c continues the run in --out; add --out FOLDER",
    "stray": "Unrecognized options: stray",
}


@pytest.mark.parametrize("flags", UNREADABLE)
def test_what_cannot_be_read_is_an_error_of_one_line(flags, capfd):
    with pytest.raises(UserError) as error:
        parse(flags.split())
    text = str(error.value)
    assert UNREADABLE[flags] in text and "\n" not in text and not set("│╭─") & set(text)
    assert not any(capfd.readouterr())


def test_a_function_is_called_by_who_asked_for_its_flags(capfd):
    def greet(whom: str, times: int = 1):
        """Say hello."""
        raise SystemExit(f"hello {whom}" * times)  # its own business

    with pytest.raises(SystemExit, match="hello youhello you"):
        cli(greet, args=["--whom", "you", "--times", "2"])()
    with pytest.raises(UserError, match="--times: invalid literal"):
        cli(greet, args=["--whom", "you", "--times", "x"])


def test_the_command_of_a_sweep_is_read():
    sweep = yaml.safe_load((CODE / "sweep.yaml").read_text())
    for end in (0, -1):
        values = {
            name: x["value"] if "value" in x else x.get("values", [x.get("min"), x.get("max")])[end]
            for name, x in sweep["parameters"].items()
        }
        sent = sweeps.create_sweep_command_args({"args": {name: {"value": x} for name, x in values.items()}})["args"]
        assert f"--normalise={values['normalise']}" in sent
        assert parse(sent)[0].only(*values) == values
    assert (CODE / sweep["program"]).exists() and sweep["metric"]["name"] == "charts/trained_reward"
