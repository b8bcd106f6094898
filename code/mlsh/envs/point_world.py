"""What flat worlds share, above all those of points on a plane: how they are drawn, on frames or in a window."""

import os

from mlsh.envs.base import VectorTasks

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

START = 200.0  # pixels, both coordinates
WORLD = 400.0  # side of the square in which everything is placed
MARGIN = 60  # drawn around it, for what lies at its edge and a ring around that
SIZE = (int(WORLD) + 2 * MARGIN,) * 2  # of a picture
STEP = 20.0
NEAR = 2500.0  # squared pixels
MOVES = ((0, 0), (STEP, 0), (-STEP, 0), (0, STEP), (0, -STEP))  # stay, +x, −x, +y, −y
AGENT, GOAL = 10, 20  # radii
BLACK, WHITE, GREY = "#000000", "#FFFFFF", "#999999"
# four of Okabe and Ito's, which people of any colour vision tell from each other and from black and white
COLOURS = {"orange": "#D55E00", "blue": "#0072B2", "yellow": "#F0E442", "pink": "#CC79A7"}


def near(a, b):
    """Whether points a and b [..., 2] are so close that it counts, [...]."""
    return (a - b).square().sum(-1) < NEAR


class FlatWorld(VectorTasks):
    """A family of tasks drawn by pygame.

    A subclass sets `picture` and defines `_draw_episode(pygame, e)` -> a surface of that size with episode e on it.
    """

    picture: tuple[int, int]  # width and height
    _window = None

    def render(self):
        """A tuple of E frames, uint8 [height, width, 3] ("rgb_array"), or the first episode in a window ("human")."""
        import pygame

        if self.render_mode == "human":
            if self._window is None:
                pygame.display.init()
                self._window = pygame.display.set_mode(self.picture)
                self._clock = pygame.time.Clock()
            self._window.blit(self._draw_episode(pygame, 0), (0, 0))
            pygame.event.pump()
            pygame.display.flip()
            self._clock.tick(self.metadata["render_fps"])
            return None
        surfaces = (self._draw_episode(pygame, e) for e in range(self.num_envs))
        return tuple(pygame.surfarray.array3d(s).swapaxes(0, 1) for s in surfaces)

    def close_extras(self, **kwargs):
        if self._window is not None:
            import pygame

            pygame.display.quit()
            self._window = None


class PointWorld(FlatWorld):
    """A family of tasks drawn as circles, y upwards, on the square of the world and a margin, a pixel a unit.

    A subclass defines `_circles(e)` -> the circles of episode e, from the lowest to the topmost: position [2] in pixels
    (a tensor), radius, colour ("#RRGGBB"), and the width of the line, 0 for a filled one.
    """

    picture = SIZE

    def _circles(self, e):
        raise NotImplementedError

    def _draw_episode(self, pygame, e):
        surface = pygame.Surface(SIZE)
        surface.fill(WHITE)
        pygame.draw.rect(surface, GREY, (MARGIN - 1, MARGIN - 1, WORLD + 2, WORLD + 2), 2)
        for position, radius, colour, width in self._circles(e):
            x, y = position.tolist()
            pygame.draw.circle(surface, colour, (MARGIN + x, MARGIN + WORLD - y), radius, width)
        return surface
