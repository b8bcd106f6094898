"""What the flat worlds share: rendering with pygame, and the constants of the worlds of points on a plane."""

import os
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch

from mlsh.envs.base import Frames, VectorTasks

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

START = 200.0  # pixels, x and y at which an agent starts
WORLD = 400.0  # pixels, the side of the square in which everything is placed
MARGIN = 60  # pixels around the square, so that whatever lies at its edge is seen whole
PICTURE = (int(WORLD) + 2 * MARGIN, int(WORLD) + 2 * MARGIN)
STEP = 20.0  # pixels per move
NEAR = 2500.0  # squared pixels; two points closer than this are near each other
MOVES = ((0, 0), (STEP, 0), (-STEP, 0), (0, STEP), (0, -STEP))  # stay, +x, −x, +y, −y
AGENT_RADIUS, GOAL_RADIUS = 10, 20  # pixels, in the picture
BLACK, WHITE, GREY = "#000000", "#FFFFFF", "#999999"
# From the palette of Okabe and Ito: people with any colour vision can tell these from each other, black and white.
COLOURS = {"orange": "#D55E00", "blue": "#0072B2", "yellow": "#F0E442", "pink": "#CC79A7"}

Circle = tuple[torch.Tensor, float, str, int]  # position [2] in pixels, radius, colour, width of the line (0: filled)


def near(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return whether the points a and b [..., 2] are less than 50 pixels apart, bool [...]."""
    return (a - b).square().sum(-1) < NEAR


class FlatWorld(VectorTasks):
    """A family of tasks rendered with pygame.

    A subclass sets `picture` and defines `_render_episode(pygame, e)`, which returns a surface of that size with
    episode e on it.
    """

    picture: tuple[int, int]  # width and height
    _window: Any = None

    def _render_episode(self, pygame: ModuleType, e: int) -> Any:
        raise NotImplementedError

    def render(self) -> Frames:
        """Return one frame per slot, uint8 [height, width, 3], or show the first episode in a window ("human")."""
        import pygame

        if self.render_mode == "human":
            if self._window is None:
                pygame.display.init()
                self._window = pygame.display.set_mode(self.picture)
                self._clock = pygame.time.Clock()
            self._window.blit(self._render_episode(pygame, 0), (0, 0))
            pygame.event.pump()
            pygame.display.flip()
            self._clock.tick(self.metadata["render_fps"])
            return None
        surfaces = (self._render_episode(pygame, e) for e in range(self.num_envs))
        return tuple(pygame.surfarray.array3d(s).swapaxes(0, 1) for s in surfaces)

    def close_extras(self, **kwargs: Any) -> None:
        if self._window is not None:
            import pygame

            pygame.display.quit()
            self._window = None


class PointWorld(FlatWorld):
    """A family of tasks rendered as circles on the square of the world and a margin, y upwards, one pixel per unit.

    A subclass defines `_circles(e)`, which yields the circles of episode e, from the lowest to the topmost: position
    [2] in pixels (a tensor), radius, colour ("#RRGGBB"), and the width of the line, 0 for a filled circle.
    """

    picture = PICTURE
    agent: torch.Tensor  # [E, 2], in pixels

    def position(self) -> torch.Tensor:
        """Return the agents' x and y in pixels, [E, 2]."""
        return self.agent

    def _circles(self, e: int) -> Iterable[Circle]:
        raise NotImplementedError

    def _render_episode(self, pygame: ModuleType, e: int) -> Any:
        surface = pygame.Surface(PICTURE)
        surface.fill(WHITE)
        pygame.draw.rect(surface, GREY, (MARGIN - 1, MARGIN - 1, WORLD + 2, WORLD + 2), 2)
        for position, radius, colour, width in self._circles(e):
            x, y = position.tolist()
            pygame.draw.circle(surface, colour, (MARGIN + x, MARGIN + WORLD - y), radius, width)
        return surface
