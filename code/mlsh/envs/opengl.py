"""Which OpenGL backend renders MuJoCo's scenes: that of a display (GLFW), EGL or OSMesa."""

import functools
import importlib
import os
import subprocess
import sys
import warnings

import glfw

from mlsh.errors import RenderingUnavailable

if "MUJOCO_GL" in os.environ:  # dm_control does not take capitals
    os.environ["MUJOCO_GL"] = os.environ["MUJOCO_GL"].lower().strip()
try:
    import mujoco
except Exception:  # MUJOCO_GL names a backend that this machine lacks; only rendering needs it
    requested = os.environ.pop("MUJOCO_GL", "")
    import mujoco  # noqa: F401

    os.environ["MUJOCO_GL"] = requested

BACKENDS = ("glfw", "egl", "osmesa")
CHOOSE_PLATFORM = ("PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID")  # variables that may exclude a backend that works
REMEDY = "on Debian, apt install libegl1 or libosmesa6"
RENDER_ONCE = """
import mujoco, sys
from importlib import import_module
context = import_module(f"mujoco.{sys.argv[1]}").GLContext(9, 9)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_150)
"""


def choose_opengl(human: bool = False) -> None:
    """Set MUJOCO_GL to a backend that works here: the one that the user has set, else a display, EGL, or OSMesa.

    If none works, they are tried again without the user's settings that choose a platform or device of PyOpenGL and
    EGL. `human` asks for a window, which needs a display.

    Raises RenderingUnavailable if no backend works, or if a window has no display.
    """
    if human:
        if not can_render("glfw"):
            raise RenderingUnavailable("there is no display for a window; use render_mode rgb_array")
        return
    requested = os.environ.get("MUJOCO_GL", "").lower()
    order = sorted(BACKENDS, key=lambda backend: backend != requested)
    for without in ((), CHOOSE_PLATFORM if any(name in os.environ for name in CHOOSE_PLATFORM) else ()):
        for backend in order:
            if can_render(backend, without):
                for name in without:
                    os.environ.pop(name, None)
                use(backend)
                return
    was = f" with MUJOCO_GL={requested} or any other" if requested else ""
    raise RenderingUnavailable(f"no OpenGL for rendering{was}; {REMEDY}")


def use(backend: str) -> None:
    """Set the backend, also in libraries that read MUJOCO_GL when they were imported."""
    if os.environ.get("MUJOCO_GL") == backend:
        return
    os.environ["MUJOCO_GL"] = backend
    if backend != "glfw":
        context = importlib.import_module(f"mujoco.{backend}").GLContext
        for name, module in list(sys.modules.items()):
            if name.startswith("mujoco.") and name.endswith("gl_context"):
                setattr(module, "GLContext", context)  # noqa: B010 (type checkers do not know the attribute)
    if "dm_control._render" in sys.modules:
        importlib.reload(sys.modules["dm_control._render"])


@functools.cache
def can_render(backend: str, without: tuple[str, ...] = ()) -> bool:
    """Return whether the OpenGL backend works on this machine, without these environment variables."""
    if backend == "glfw":
        return has_display()
    # tried in a process of its own, because a backend that fails leaves PyOpenGL unusable for the next
    command = [sys.executable, "-P", "-c", RENDER_ONCE, backend]
    variables = {name: value for name, value in os.environ.items() if name not in without} | {"MUJOCO_GL": backend}
    return subprocess.run(command, env=variables, capture_output=True).returncode == 0


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
