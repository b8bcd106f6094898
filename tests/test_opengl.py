import os
import subprocess
import sys

import glfw
import pytest

from conftest import CODE, TINY
from mlsh.envs import opengl
from mlsh.envs.opengl import choose_opengl
from mlsh.errors import RenderingUnavailable

WITHOUT = """
import ctypes
load = ctypes.CDLL.__init__
def refuse(self, name, *args, **kwargs):
    if "EGL" in str(name) or "OSMesa" in str(name):
        raise OSError(name)
    load(self, name, *args, **kwargs)
ctypes.CDLL.__init__ = refuse
"""
DEAD = ":77"  # a display that there is not


def drawing_by(*backends):
    return lambda name: name in backends


def test_the_first_that_draws_is_taken(monkeypatch):
    for backends, chosen in ((opengl.BACKENDS, "glfw"), (("osmesa", "egl"), "egl"), (("osmesa",), "osmesa")):
        monkeypatch.setenv("MUJOCO_GL", "")
        monkeypatch.setattr(opengl, "draws", drawing_by(*backends))
        choose_opengl()
        assert os.environ["MUJOCO_GL"] == chosen
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(opengl, "draws", drawing_by())
    with pytest.raises(RenderingUnavailable, match="no OpenGL for drawing; .*libegl1"):
        choose_opengl()


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setattr(opengl, "draws", drawing_by("glfw", "osmesa"))
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    choose_opengl()
    assert os.environ["MUJOCO_GL"] == "osmesa"
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(RenderingUnavailable, match="no OpenGL by MUJOCO_GL=egl; unset it"):
        choose_opengl()
    assert os.environ["MUJOCO_GL"] == "egl"


def test_a_window_wants_a_display(monkeypatch):
    monkeypatch.setattr(opengl, "draws", drawing_by("egl"))
    with pytest.raises(RenderingUnavailable, match="no display"):
        choose_opengl(human=True)
    monkeypatch.setattr(opengl, "draws", drawing_by("glfw"))
    choose_opengl(human=True)


def test_a_dead_display_and_an_unknown_backend_do_not_draw(monkeypatch):
    monkeypatch.setenv("DISPLAY", DEAD)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    glfw.terminate()  # whatever it is connected to
    assert not opengl.has_display() and not opengl.draws("disable")


@pytest.mark.parametrize(
    ("env", "variables"), [("AntBandits-v1", {"MUJOCO_GL": "egl"}), ("foreign:Directions-v0", {"DISPLAY": DEAD})]
)
def test_training_goes_on_where_nothing_draws(tmp_path, env, variables):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    path = os.pathsep.join(map(str, (tmp_path, CODE, CODE.parent / "tests")))
    clean = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")}
    run = subprocess.run(
        [sys.executable, "train.py", *TINY, "--env", env, "--record", "1", "--out", str(tmp_path / "run")],
        cwd=CODE,
        env=clean | variables | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("no videos: no OpenGL") == 1 and "Traceback" not in run.stderr
    assert list((tmp_path / "run" / "videos").iterdir()) == []
