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
DEAD = ":77"  # a display that does not exist


@pytest.fixture
def only_set(monkeypatch):
    """Backends are set without their libraries, which a process can load for one backend only."""
    monkeypatch.setattr(opengl, "use", lambda backend: monkeypatch.setenv("MUJOCO_GL", backend))


def working(*backends):
    return lambda name, without=(): name in backends


def test_the_first_backend_that_works_is_chosen(monkeypatch, only_set):
    for backends, chosen in ((opengl.BACKENDS, "glfw"), (("osmesa", "egl"), "egl"), (("osmesa",), "osmesa")):
        monkeypatch.setenv("MUJOCO_GL", "")
        monkeypatch.setattr(opengl, "can_render", working(*backends))
        choose_opengl()
        assert os.environ["MUJOCO_GL"] == chosen
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(opengl, "can_render", working())
    with pytest.raises(RenderingUnavailable, match="no OpenGL for rendering; .*libegl1"):
        choose_opengl()


def test_the_users_own_choice_comes_first(monkeypatch, only_set):
    monkeypatch.setattr(opengl, "can_render", working("egl", "osmesa"))
    for chosen in ("osmesa", "OSMesa"):
        monkeypatch.setenv("MUJOCO_GL", chosen)
        choose_opengl()
        assert os.environ["MUJOCO_GL"] == "osmesa"
    monkeypatch.setattr(opengl, "can_render", working("egl"))
    choose_opengl()
    assert os.environ["MUJOCO_GL"] == "egl"  # another way to draw is better than none
    monkeypatch.setattr(opengl, "can_render", working())
    with pytest.raises(RenderingUnavailable, match="no OpenGL for rendering with MUJOCO_GL=egl or any other"):
        choose_opengl()


def test_variables_that_exclude_every_backend_are_removed(monkeypatch, only_set):
    monkeypatch.setattr(opengl, "can_render", lambda backend, without=(): backend == "egl" and bool(without))
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    choose_opengl()
    assert not {"PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID"} & os.environ.keys()


def test_a_window_needs_a_display(monkeypatch):
    monkeypatch.setattr(opengl, "can_render", working("egl"))
    with pytest.raises(RenderingUnavailable, match="no display"):
        choose_opengl(human=True)
    monkeypatch.setattr(opengl, "can_render", working("glfw"))
    choose_opengl(human=True)


def test_a_dead_display_and_an_unknown_backend_do_not_work(monkeypatch):
    monkeypatch.setenv("DISPLAY", DEAD)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    glfw.terminate()  # from any display it is connected to
    assert not opengl.has_display() and not opengl.can_render("disable")


@pytest.mark.parametrize(
    ("env", "variables"), [("AntBandits-v1", {"MUJOCO_GL": "egl"}), ("foreign:Directions-v0", {"DISPLAY": DEAD})]
)
def test_training_continues_where_no_backend_works(tmp_path, env, variables):
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
