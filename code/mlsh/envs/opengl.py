"""Which OpenGL backend renders MuJoCo's scenes: that of a display (GLFW), EGL or OSMesa."""

import functools
import os
import subprocess
import sys
import warnings

import glfw

from mlsh.errors import RenderingUnavailable

try:
    import mujoco
except Exception:  # MUJOCO_GL names a backend that this machine lacks; only rendering needs it
    requested = os.environ.pop("MUJOCO_GL", "")
    import mujoco  # noqa: F401

    os.environ["MUJOCO_GL"] = requested

BACKENDS = ("glfw", "egl", "osmesa")
REMEDY = "on Debian, apt install libegl1 or libosmesa6"
RENDER_ONCE = """
import mujoco, sys
from importlib import import_module
context = import_module(f"mujoco.{sys.argv[1]}").GLContext(9, 9)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_150)
"""


def choose_opengl(human: bool = False) -> None:
    """Set MUJOCO_GL to the first backend that works here: a display, EGL, OSMesa. A user's own setting is kept.

    `human` asks for a window, which needs a display.

    Raises RenderingUnavailable if no backend works, if the one that the user has set does not work, or if a window has
    no display.
    """
    if human:
        if not can_render("glfw"):
            raise RenderingUnavailable("there is no display for a window; use render_mode rgb_array")
        return
    requested = os.environ.get("MUJOCO_GL")
    for backend in (requested,) if requested else BACKENDS:
        if can_render(backend):
            os.environ["MUJOCO_GL"] = backend
            return
    if requested:
        raise RenderingUnavailable(f"no OpenGL with MUJOCO_GL={requested}; unset it or use another; {REMEDY}")
    raise RenderingUnavailable(f"no OpenGL for rendering; {REMEDY}")


@functools.cache
def can_render(backend: str) -> bool:
    """Return whether the OpenGL backend works on this machine."""
    if backend == "glfw":
        return has_display()
    if backend not in BACKENDS:
        return False
    # tried in a process of its own, because a backend that fails leaves PyOpenGL unusable for the next
    command = [sys.executable, "-P", "-c", RENDER_ONCE, backend]
    return subprocess.run(command, env=os.environ | {"MUJOCO_GL": backend}, capture_output=True).returncode == 0


def has_display() -> bool:
    """Return whether GLFW can open a window here. Rendering with GLFW without a display may abort the process.

    GLFW stays connected to the display. An Xvfb restarts when its last client leaves, and refuses everyone meanwhile.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GLFW warns about what fails
        if not glfw.init():
            return False
        glfw.window_hint(glfw.VISIBLE, 0)
        window = glfw.create_window(9, 9, "", None, None)
        if window:
            glfw.destroy_window(window)
        return bool(window)
