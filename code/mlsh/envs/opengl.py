"""With which OpenGL MuJoCo's scenes are drawn: that of a display, EGL or OSMesa, whichever this machine has."""

import functools
import os
import subprocess
import sys
import warnings

import glfw

from mlsh.errors import RenderingUnavailable

try:
    import mujoco
except Exception:  # as MUJOCO_GL names what this machine lacks; but only pictures want it
    wanted = os.environ.pop("MUJOCO_GL", "")
    import mujoco  # noqa: F401

    os.environ["MUJOCO_GL"] = wanted

BACKENDS = ("glfw", "egl", "osmesa")
REMEDY = "on Debian, apt install libegl1 or libosmesa6"
DRAW = """
import mujoco, sys
from importlib import import_module
context = import_module(f"mujoco.{sys.argv[1]}").GLContext(9, 9)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_150)
"""


def choose_opengl(human=False):
    """Set MUJOCO_GL, if the user has not, to what draws here: a display, else EGL, else OSMesa.

    Raises RenderingUnavailable if nothing does, or not what the user has set, or no display for a window (`human`).
    """
    if human:
        if not draws("glfw"):
            raise RenderingUnavailable("no display for a window; use render_mode rgb_array")
        return
    wanted = os.environ.get("MUJOCO_GL")
    for name in (wanted,) if wanted else BACKENDS:
        if draws(name):
            os.environ["MUJOCO_GL"] = name
            return
    missing = f"no OpenGL by MUJOCO_GL={wanted}; unset it, or use another" if wanted else "no OpenGL for drawing"
    raise RenderingUnavailable(f"{missing}; {REMEDY}")


@functools.cache
def draws(name):
    """Whether the backend `name` draws here."""
    if name == "glfw":
        return has_display()
    if name not in BACKENDS:
        return False
    # in a process of its own, since what fails spoils PyOpenGL for the next
    command, env = [sys.executable, "-P", "-c", DRAW, name], os.environ | {"MUJOCO_GL": name}
    return subprocess.run(command, env=env, capture_output=True).returncode == 0


def has_display():
    """Whether GLFW opens a window here; what asks it for one without a display may abort.

    It stays connected: an Xvfb starts anew, and refuses everybody meanwhile, when its last client has left.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GLFW's own, of what fails
        if not glfw.init():
            return False
        glfw.window_hint(glfw.VISIBLE, 0)
        window = glfw.create_window(9, 9, "", None, None)
        if window:
            glfw.destroy_window(window)
        return bool(window)
