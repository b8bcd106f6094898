"""What the MuJoCo families share: parallel simulation, the handling of divergence, and rendering."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium.envs.mujoco
import mujoco
import mujoco.rollout
import numpy as np
import torch
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

from mlsh.envs.base import Frames, Info, VectorTasks
from mlsh.envs.memory import own_cores
from mlsh.envs.opengl import REMEDY, choose_opengl
from mlsh.errors import RenderingUnavailable

DIVERGED_ABOVE = 1e3  # of a position or velocity; in simulations that have not diverged they stay below 1e2


def gymnasium_model(name: str) -> mujoco.MjSpec:
    """Return one of Gymnasium's MuJoCo models, such as "ant.xml", as a spec for `MujocoTasks`. Its floor has no margin.

    MuJoCo adds the margins of two geoms; before 3.5.0 it took the larger one. With a margin of 0 for the floor, both
    give the margin of the foot.
    """
    path = Path(gymnasium.envs.mujoco.__file__).parent / "assets" / name
    spec = mujoco.MjSpec.from_string(path.read_text().replace('coordinate="local"', ""))
    spec.geom("floor").margin = 0
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET  # an automatic reset would hide a divergence
    return spec


def add_com_sensors(spec: mujoco.MjSpec, *bodies: str) -> None:
    """Add sensors of the centre of mass of each body and its descendants: x, y and z in metres, one substep old."""
    for body in bodies:
        kind = {"type": mujoco.mjtSensor.mjSENS_SUBTREECOM, "objtype": mujoco.mjtObj.mjOBJ_BODY}
        spec.add_sensor(name=f"{body}_com", objname=body, **kind)


class MujocoTasks(VectorTasks):
    """A family of tasks simulated by MuJoCo on a pool of threads. Control and state are on the CPU, as MuJoCo is.

    An episode diverges if its state is no longer finite or exceeds 1e3. It then keeps its last good state, terminates,
    and is flagged in `info["diverged"]`. Its last reward is what standing still in that state pays, for this step and
    every step that is missing until the time limit. With `pays_after_divergence = False` it is 0 instead.

    The `model` is made from `gymnasium_model`. A subclass sets `frame_skip` and `camera` (attributes of a MuJoCo
    camera; without `lookat` it follows the body), may set `follow_camera`, and defines:

    - `_initial_state(slots)`: returns qpos and qvel, [len(slots), …] each, with which episodes in `slots` begin
    - `_observe(qpos, qvel)`: returns the observations [E, obs]
    - `_reward(qpos_before, actions, qpos, sensors)`: returns the rewards [E] and a dict of further values [E] for the
      info; `qpos_before` and `qpos` [E, nq] are from before and after the step

    `sim_threads` is the number of threads, 0 or None for all cores. Results do not depend on it.
    """

    frame_skip: int
    camera: dict[str, Any]
    follow_camera: dict[str, Any] = {"distance": 12.0, "elevation": -40.0, "azimuth": 90.0}
    pays_after_divergence = True
    picture, window = (480, 360), (960, 720)  # width and height

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        max_episode_steps: int | None,
        render_mode: str | None,
        device: str | torch.device,
        sim_threads: int | None,
    ) -> None:
        super().__init__(num_envs, max_episode_steps, render_mode, device)
        self.model = model
        threads = min(sim_threads or own_cores(), num_envs)
        # without this MuJoCo writes MUJOCO_LOG.TXT into the working directory
        mujoco.set_mju_user_warning(lambda message: None)
        self._data = [mujoco.MjData(model) for _ in range(threads)]
        self._pool = self._make_pool()
        self._renderer: MujocoRenderer | None = None
        self._state = np.zeros((num_envs, 1 + model.nq + model.nv))  # time, qpos, qvel
        self._sensors = np.zeros((num_envs, model.nsensordata))  # of the last good step

    def _make_pool(self) -> mujoco.rollout.Rollout:
        threads = len(self._data)
        return mujoco.rollout.Rollout(nthread=threads if threads > 1 else 0)

    def __getstate__(self) -> dict[str, Any]:  # to copy and pickle; threads and OpenGL cannot be
        return self.__dict__ | {"_pool": None, "_renderer": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pool = self._make_pool()

    def _initial_state(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def _observe(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _reward(
        self, qpos_before: np.ndarray, actions: np.ndarray, qpos: np.ndarray, sensors: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        raise NotImplementedError

    def _ended(self, qpos: np.ndarray) -> np.ndarray:
        """Return whether the rules end each episode in the state `qpos` [E, nq], bool [E]."""
        return np.zeros(len(qpos), bool)

    def _edit_state(self, state: np.ndarray) -> None:
        """Change `state` [E, 1 + nq + nv] in place after a control step, where the rules ask for more than physics."""

    def _reset(self, slots: np.ndarray) -> torch.Tensor:
        self._state = self._state.copy()  # callers may hold the old array
        self._state[slots] = np.concatenate((np.zeros((len(slots), 1)), *self._initial_state(slots)), 1)
        # the sensors after one substep show the state before it
        self._sensors[slots] = self._pool.rollout(self.model, self._data, self._state[slots], nstep=1)[1][:, 0]
        return self._tensor(self._observe(*self._split(self._state)))

    def _split(self, state: np.ndarray) -> list[np.ndarray]:
        """Return qpos [E, nq] and qvel [E, nv] of states [E, 1 + nq + nv]."""
        return np.split(state[:, 1:], [self.model.nq], 1)

    @property
    def state(self) -> np.ndarray:
        """Time, qpos and qvel of every episode, float64 [E, 1 + nq + nv]."""
        return self._state

    def position(self) -> torch.Tensor:
        """Return x and y of the torso in metres, [E, 2]."""
        return self._tensor(self._state[:, 1:3])

    def control(self, actions: torch.Tensor) -> np.ndarray:
        """Return actions [E, nu] as float64 [E, frame_skip, nu]. MuJoCo clips them to the actuators' range."""
        return np.repeat(actions.cpu().numpy().astype(np.float64)[:, None], self.frame_skip, 1)

    def _models(self) -> mujoco.MjModel | list[mujoco.MjModel]:
        """Return the model that is simulated, or one for each episode."""
        return self.model

    def simulate(self, state: np.ndarray, control: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Simulate one control step of every episode from `state`.

        Returns the states and the sensors after each substep, [E, frame_skip, …] both.
        """
        return self._pool.rollout(self._models(), self._data, state, control)

    def _step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Info]:
        states, sensors = self.simulate(self._state, self.control(actions))
        state, sensors, action_array = states[:, -1], sensors[:, -1], actions.numpy(force=True)
        diverged = ~np.all(np.abs(state[:, 1:]) < DIVERGED_ABOVE, axis=1)  # written so that NaN counts as diverged
        any_diverged = diverged.any()
        if any_diverged:
            state[diverged], sensors[diverged] = self._state[diverged], self._sensors[diverged]
            action_array = np.where(diverged[:, None], 0, action_array)
        qpos_before, qpos = self._split(self._state)[0], self._split(state)[0]
        reward, values = self._reward(qpos_before, action_array, qpos, sensors)
        if any_diverged:
            elapsed = self._elapsed.numpy(force=True)
            steps_missing = (self.max_episode_steps or elapsed) - elapsed + 1
            reward = np.where(diverged, reward * steps_missing * self.pays_after_divergence, reward)
        self._edit_state(state)
        self._state, self._sensors = state, sensors
        info = {name: self._tensor(x) for name, x in values.items()}
        info["diverged"] = torch.from_numpy(diverged).to(self.device)
        terminated = torch.from_numpy(diverged | self._ended(qpos)).to(self.device)
        return self._tensor(self._observe(*self._split(state))), self._tensor(reward), terminated, info

    @contextlib.contextmanager
    def rollout_context(self) -> Iterator[None]:
        """Limit PyTorch to one thread: idle threads of its own would slow down those of MuJoCo."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def render(self) -> Frames:
        """Return one frame per slot, uint8 [360, 480, 3], or show the first episode in a window ("human").

        Raises RenderingUnavailable if OpenGL does not work on this machine.
        """
        human = self.render_mode == "human"
        if self._renderer is None:
            choose_opengl(human)
        try:
            self._renderer = self._renderer or self._make_renderer(human)
            frames = tuple(self._render_episode(e) for e in range(1 if human else self.num_envs))
        except Exception as error:  # each OpenGL backend raises exceptions of its own
            raise RenderingUnavailable(f"OpenGL fails; {REMEDY} ({' '.join(str(error).split())})") from None
        return None if human else frames

    def _make_renderer(self, human: bool) -> MujocoRenderer:
        self._shown = mujoco.MjData(self.model)
        width, height = self.window if human else self.picture
        renderer = MujocoRenderer(self.model, self._shown, self.camera, width, height)
        if human:  # hide the menu that covers the picture; Gymnasium has a key for it (H), but no argument
            viewer: Any = renderer._get_viewer("human")
            viewer._hide_menu = True
        return renderer

    def _render_episode(self, e: int) -> Any:
        self._shown.qpos, self._shown.qvel = np.split(self._state[e, 1:], [self.model.nq])
        mujoco.mj_forward(self.model, self._shown)
        assert self._renderer is not None
        if "lookat" not in self.camera:  # Gymnasium's renderer has no camera that follows
            viewer: Any = self._renderer._get_viewer(self.render_mode)
            viewer.cam.lookat[:] = self._shown.subtree_com[1]
        return self._renderer.render(self.render_mode)

    def close_extras(self, **kwargs: Any) -> None:
        self._pool.close()
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
