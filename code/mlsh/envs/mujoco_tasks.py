"""What the MuJoCo families share: stepping a batch on a pool of threads, episodes that diverge, rendering."""

import contextlib
import os

import mujoco
import mujoco.rollout
import numpy as np
import torch
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

from mlsh.envs.base import VectorTasks
from mlsh.envs.opengl import REMEDY, choose_opengl
from mlsh.errors import RenderingUnavailable

TOO_LARGE = 1e3  # of a position or velocity, which stay below 1e2: the simulation has diverged


class MujocoTasks(VectorTasks):
    """A family of tasks simulated by MuJoCo; control and state live on the CPU, as MuJoCo does.

    An episode whose state stops being finite, or exceeds 1e3, has diverged: it keeps its last good state, terminates,
    is flagged in `info["diverged"]`, and is paid for every step that it misses what standing still in that state pays.

    A subclass sets `frame_skip` and `camera` (MuJoCo camera attributes) and defines `_initial(which)` -> qpos, qvel of
    the slots `which` (each [len(which), …]), `_observe(qpos, qvel)` -> [E, obs], and `_reward(before, actions, qpos,
    sensors)` -> reward [E] and what the info reports beside it, a dict of [E]; `before` and `qpos` [E, nq] are those
    before and after the step.
    """

    frame_skip: int
    camera: dict
    picture, window = (480, 360), (960, 720)  # width and height

    def __init__(self, model, num_envs, max_episode_steps, render_mode, device, sim_threads):
        super().__init__(num_envs, max_episode_steps, render_mode, device)
        self.model = model
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET  # would hide a divergence
        cores = os.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes share them
        threads = min(sim_threads or max(cores, 1), num_envs)
        mujoco.set_mju_user_warning(lambda message: None)  # else written to MUJOCO_LOG.TXT where the user stands
        self._pool = mujoco.rollout.Rollout(nthread=threads if threads > 1 else 0)
        self._data = [mujoco.MjData(model) for _ in range(threads)]
        self._renderer = None
        self._state = np.zeros((num_envs, 1 + model.nq + model.nv))  # time, qpos, qvel
        self._sensors = np.zeros((num_envs, model.nsensordata))  # of the last good step

    def _reset(self, which):
        self._state = self._state.copy()  # it has been handed out
        self._state[which] = np.concatenate((np.zeros((len(which), 1)), *self._initial(which)), 1)
        # sensors show the state from which a substep starts
        self._sensors[which] = self._pool.rollout(self.model, self._data, self._state[which], nstep=1)[1][:, 0]
        return self._tensor(self._observe(*self._split(self._state)))

    def _split(self, state):
        """Its qpos and qvel."""
        return np.split(state[:, 1:], [self.model.nq], 1)

    @property
    def state(self):
        """Time, qpos and qvel of every episode, float64 [E, 1 + nq + nv]."""
        return self._state

    def control(self, actions):
        """Actions [E, nu] as MuJoCo wants them, float64 [E, frame_skip, nu]; it clips them to the actuators' range."""
        return np.repeat(actions.cpu().numpy().astype(np.float64)[:, None], self.frame_skip, 1)

    def simulate(self, state, control):
        """A control step from `state` for every episode: states [E, frame_skip, …] and sensors, of each substep."""
        return self._pool.rollout(self.model, self._data, state, control)

    def _step(self, actions):
        states, sensors = self.simulate(self._state, self.control(actions))
        state, sensors, actions = states[:, -1], sensors[:, -1], actions.numpy(force=True)
        diverged = ~(np.abs(state[:, 1:]) < TOO_LARGE).all(1)  # NaN included
        failed = diverged.any()
        if failed:
            state[diverged], sensors[diverged] = self._state[diverged], self._sensors[diverged]
            actions = np.where(diverged[:, None], 0, actions)
        reward, reported = self._reward(self._split(self._state)[0], actions, self._split(state)[0], sensors)
        if failed:
            elapsed = self._elapsed.numpy(force=True)
            missed = (self.max_episode_steps or elapsed) - elapsed + 1
            reward = np.where(diverged, reward * missed, reward)
        self._between(state)
        self._state, self._sensors = state, sensors
        info = {name: self._tensor(x) for name, x in reported.items()}
        info["diverged"] = torch.from_numpy(diverged).to(self.device)
        return self._tensor(self._observe(*self._split(state))), self._tensor(reward), info["diverged"], info

    def _between(self, state):
        """What changes between two control steps other than by simulation: to be written into `state`."""

    @contextlib.contextmanager
    def simulating(self):
        """Leaves torch one thread: more would spin in the way of MuJoCo's own."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def render(self):
        """A tuple of E frames, uint8 [360, 480, 3] ("rgb_array"), or the first episode in a window ("human").

        Raises RenderingUnavailable if this machine has no OpenGL.
        """
        human = self.render_mode == "human"
        if self._renderer is None:
            choose_opengl(human)
        try:
            self._renderer = self._renderer or self._new_renderer(human)
            frames = tuple(self._render_episode(e) for e in range(1 if human else self.num_envs))
        except Exception as error:  # each backend fails in its own way
            raise RenderingUnavailable(f"OpenGL fails; {REMEDY} ({' '.join(str(error).split())})") from None
        return None if human else frames

    def _new_renderer(self, human):
        self._shown = mujoco.MjData(self.model)
        renderer = MujocoRenderer(self.model, self._shown, self.camera, *(self.window if human else self.picture))
        if human:  # without the menu over the picture, for which Gymnasium has a key (H) but no argument
            renderer._get_viewer("human")._hide_menu = True
        return renderer

    def _render_episode(self, e):
        self._shown.qpos, self._shown.qvel = np.split(self._state[e, 1:], [self.model.nq])
        mujoco.mj_forward(self.model, self._shown)
        return self._renderer.render(self.render_mode)

    def close_extras(self, **kwargs):
        self._pool.close()
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
