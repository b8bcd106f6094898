import dataclasses

import pytest

from mlsh import settings
from mlsh.baselines.option_critic import OptionCriticConfig
from mlsh.baselines.rl2 import RL2Config
from mlsh.config import Config
from mlsh.envs import find_preset
from mlsh.errors import UserError
from mlsh.ppo import PPOSettings
from test_settings import parse


def test_defaults_are_the_environments_preset_and_flags_override_them():
    cfg, saved = parse([])
    assert saved is None and cfg == Config(**find_preset("MovementBandits-v0"))
    cfg, _ = parse("--env MovementBandits4-v0 -W 7 --high-len 5".split())
    assert (cfg.num_sub_policies, cfg.W, cfg.high_len) == (4, 7, 5)
    cfg, _ = parse("--env mlsh:MovementBandits-v0".split())
    assert cfg.groups == find_preset("MovementBandits-v0")["groups"]


def test_names_of_the_earlier_port_and_of_earlier_versions_are_understood():
    line = "-N 9 -W 3 -U 2 --tasks 4 -K 5 -T 6 --high_len 2 --bs 8 --llr .1 --hlr=.2 --gamma .3 --lam .4 --epsilon .5"
    line += " --c1 .6 --c2 .7 --c2-low .8 --record 11 --seed 12 --num_low 3 --env MovementBandits-v0"
    cfg, _ = parse(line.split())
    assert (cfg.N, cfg.W, cfg.U, cfg.tasks, cfg.epochs, cfg.T, cfg.high_len) == (9, 3, 2, 4, 5, 6, 2)
    assert (cfg.master_minibatch, cfg.sub_lr, cfg.master_lr, cfg.gamma, cfg.lam) == (8, 0.1, 0.2, 0.3, 0.4)
    assert (cfg.clip, cfg.value_coef, cfg.master_entropy, cfg.sub_entropy) == (0.5, 0.6, 0.7, 0.8)
    assert (cfg.record, cfg.seed, cfg.num_sub_policies) == (11, 12, 3)
    assert settings.parse(RL2Config, "--parts 2 --c2 .5".split(), None)[0].minibatches == 2
    for kind in (Config, RL2Config, OptionCriticConfig):
        known = {field.name for field in dataclasses.fields(kind)}
        assert set(kind.RENAMED.values()) <= known and not known & {*kind.RENAMED, *kind.REMOVED}


def test_settings_that_are_gone_are_left_out_of_old_runs():
    old = Config(N=7).as_dict() | {"wandb_group": "mine", "wandb_name": "one", "llr": 0.5}
    del old["sub_lr"]
    assert Config.from_dict(old) == Config(N=7, sub_lr=0.5)


def test_w_and_u_both_0_are_refused():
    with pytest.raises(UserError, match="-W 0 and -U 0"):
        parse("-W 0 -U 0".split())
    assert parse("-W 0 -U 1".split())[0].W == 0
    assert parse("-W 1 -U 0".split())[0].U == 0


def test_without_sub_policies_nothing_is_joint():
    with pytest.raises(UserError, match="-U is 1: .*use -U 0"):
        parse("--num_sub_policies 0 -U 1".split())
    cfg, _ = parse("--num_sub_policies 0 -U 0 -N 4 -T 50 --master_minibatch 100".split())
    assert cfg.master_ppo.minibatches == 2  # a decision at each of 200 steps


def test_derived_values():
    cfg = dataclasses.replace(Config(), N=40, T=50, high_len=10, master_minibatch=64, fade=10, sub_entropy=0.5)
    assert cfg.master_ppo.minibatches == 4  # 200 decisions in minibatches of at most 64
    assert dataclasses.replace(cfg, T=51).master_ppo.minibatches == 4  # 240
    assert [cfg.faded(i) for i in (0, 5, 10, 99)] == [1, 0.5, 0, 0]
    assert cfg.sub_ppo(5).entropy_coef == 0.25
    cfg = dataclasses.replace(cfg, epochs=3, clip=0.3, dual_clip=5.0, target_kl=0.1)
    same = {"epochs": 3, "clip": 0.3, "dual_clip": 5.0, "value_coef": 0.5}
    assert cfg.master_ppo == PPOSettings(minibatches=4, **same)
    assert cfg.sub_ppo(10) == PPOSettings(minibatches=15, target_kl=0.1, **same)
    assert dataclasses.replace(cfg, fade=0).faded(99) == 1
    discounts = [
        dataclasses.replace(cfg, gamma=0.9, master_gamma=x, num_sub_policies=K).rollout.master_gamma
        for x, K in ((0, 2), (0.8, 2), (0.8, 0))
    ]
    assert discounts == [0.9, 0.8, 0.9]  # a flat policy acts at every env step
    assert [dataclasses.replace(cfg, sub_lr=0.8, sub_lr_decay=0.5).sub_lr_at(i) for i in (0, 1, 3)] == [0.8, 0.4, 0.1]


def test_the_horizon_is_the_environments_own_limit_where_nothing_else_is_said():
    def horizon(kind, *flags):
        return settings.parse(kind, ["--env", *flags], None)[0].T

    for kind in (Config, RL2Config):
        assert horizon(kind, "foreign:Sampled-v0") == 1000 and horizon(kind, "foreign:Sampled-v0", "-T", "9") == 9
        assert horizon(kind, "foreign:Unlimited-v0") == horizon(kind, "MovementBandits-v0") == 50
    assert horizon(Config, "AntBandits-v1") == find_preset("AntBandits-v1")["T"]
