"""What the worlds of points on a plane share: how they are drawn, on frames or in a window."""

import os

from mlsh.envs.base import VectorTasks

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

START = 200.0  # pixels, both coordinates
WORLD = 400.0  # side of the square that is drawn
STEP = 20.0
NEAR = 2500.0  # squared pixels
MOVES = ((0, 0), (STEP, 0), (-STEP, 0), (0, STEP), (0, -STEP))  # stay, +x, −x, +y, −y
AGENT, GOAL = 10, 20  # radii
GREEN, RED = (0.5, 0.8, 0.5), (0.85, 0.1, 0.1)


class PointWorld(VectorTasks):
    """A family of tasks drawn as circles, y upwards.

    A subclass defines `_circles(e)` -> the circles of episode e, from the lowest to the topmost: position [2] in pixels
    (a tensor), radius, colour (three numbers in [0, 1]), and the width of the line, 0 for a filled one.
    """

    _window = None

    def _circles(self, e):
        raise NotImplementedError

    def render(self):
        """A tuple of E frames, uint8 [400, 400, 3] ("rgb_array"), or the first episode in a window ("human")."""
        import pygame

        if self.render_mode == "human":
            if self._window is None:
                pygame.display.init()
                self._window = pygame.display.set_mode((int(WORLD), int(WORLD)))
                self._clock = pygame.time.Clock()
            self._window.blit(self._draw_episode(pygame, 0), (0, 0))
            pygame.event.pump()
            pygame.display.flip()
            self._clock.tick(self.metadata["render_fps"])
            return None
        surfaces = (self._draw_episode(pygame, e) for e in range(self.num_envs))
        return tuple(pygame.surfarray.array3d(s).swapaxes(0, 1) for s in surfaces)

    def _draw_episode(self, pygame, e):
        surface = pygame.Surface((int(WORLD), int(WORLD)))
        surface.fill((255, 255, 255))
        for position, radius, colour, width in self._circles(e):
            x, y = position.tolist()
            pygame.draw.circle(surface, [round(255 * c) for c in colour], (x, WORLD - y), radius, width)
        return surface

    def close_extras(self, **kwargs):
        if self._window is not None:
            import pygame

            pygame.display.quit()
            self._window = None
