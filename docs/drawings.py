"""The diagrams of README and docs: python docs/drawings.py FOLDER"""

import ast
import subprocess
import textwrap
from pathlib import Path
from typing import Annotated

import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from mlsh.errors import UserError, run_command
from mlsh.runs.files import make_folder, writing
from mlsh.settings import cli

CODE = Path(__file__).absolute().parents[1] / "code"
MASTER, SUB, WORLD = "#f6d9b8", "#cfe3f5", "#dcefd3"
Point = tuple[float, float]


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure, in inches, with coordinates in inches."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    patch = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.1", fc=colour, ec="#444")
    axes.add_patch(patch)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10)


def arrow(axes: Axes, start: Point, end: Point, colour: str = "#444", style: str = "-") -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=colour, linestyle=style))


def architecture(path: Path) -> None:
    """The master picks one of the sub-policies, which acts."""
    figure, axes = canvas(8.6, 4.4)
    box(axes, 2.6, 3.4, 2.8, 0.75, "master policy  θ\nnew for every task", MASTER)
    xs, names = (0.6, 3.0, 5.4), (r"sub-policy  $\phi_1$", r"sub-policy  $\phi_2$", r"sub-policy  $\phi_K$")
    for x, name in zip(xs, names, strict=True):
        box(axes, x, 1.75, 2.0, 0.65, name, SUB)
        chosen = name == names[1]
        arrow(axes, (4, 3.4), (x + 1, 2.42), colour="#b35900" if chosen else "#bbb", style="-" if chosen else "--")
        arrow(axes, (x + 0.3, 1.2), (x + 0.3, 1.73))  # the observation goes to each of them
    axes.text(5.2, 2.07, "…", ha="center", va="center")
    axes.text(5.6, 3.2, "picks one every high_len steps", fontsize=9, color="#b35900")
    axes.text(7.55, 2.07, "shared by\nall tasks", fontsize=9, va="center", color="#336699")
    box(axes, 2.6, 0.2, 2.8, 0.65, "environment of the sampled task", WORLD)
    arrow(axes, (4.0, 1.73), (4.0, 0.88), "#b35900")
    axes.text(4.1, 1.4, "action at every step", fontsize=9, va="center", color="#b35900")
    axes.plot((2.58, 0.2, 0.2), (0.52, 0.52, 3.77), color="#444", lw=1.2)
    axes.plot((0.2, xs[-1] + 0.3), (1.2, 1.2), color="#444", lw=1.2)
    arrow(axes, (0.2, 3.77), (2.58, 3.77))
    axes.text(1.2, 3.92, "observation", fontsize=9, ha="center", va="center", color="#444")
    figure.savefig(path, dpi=110)


ALGORITHM = (  # indentation, line, and what it updates or which period it begins
    (0, "initialise the K sub-policies φ", ""),
    (0, "repeat:", ""),
    (1, "sample a task (one per task group)", ""),
    (1, "initialise a new master θ and its optimiser", "master"),
    (1, "repeat W times:", "warm-up"),
    (2, "play N episodes: θ picks a sub-policy every high_len steps", ""),
    (2, "update θ by PPO, one transition per decision", "master"),
    (1, "repeat U times:", "joint"),
    (2, "play N episodes in the same way", ""),
    (2, "update θ by PPO, one transition per decision", "master"),
    (2, "update each φₖ by PPO on the steps in which it acted", "sub"),
    (0, "at test time φ is frozen, and only a new θ learns", ""),
)


def algorithm(path: Path) -> None:
    """Algorithm 1 of the paper in words."""
    height = 0.32 * len(ALGORITHM) + 0.3
    figure, axes = canvas(7.2, height)
    for i, (depth, line, mark) in enumerate(ALGORITHM):
        y = height - 0.3 - 0.32 * i
        colour = {"master": MASTER, "sub": SUB}.get(mark)
        background = {"bbox": {"fc": colour, "ec": "none", "pad": 2}} if colour else {}
        axes.text(0.3 + 0.45 * depth, y, line, fontsize=11, va="center", **background)
        if mark in ("warm-up", "joint"):
            axes.text(6.9, y, f"{mark} period", fontsize=10, va="center", ha="right", color="#777")
    figure.savefig(path, dpi=110)


def imports() -> dict[str, set[str]]:
    """Maps each module of code/ to the modules of code/ that it imports, anywhere in its file."""
    paths = [path for pattern in ("*.py", "studies/*.py", "mlsh/**/*.py") for path in CODE.glob(pattern)]
    modules = {".".join(path.relative_to(CODE).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= {name if name in modules else node.module for name in members}
        found[module] = names & (modules.keys() - {module, "mlsh"})
    del found["mlsh"]  # it only registers the environments
    return found


def package(module: str) -> str:
    """The box of a module in the structure: its sub-package, or the module itself."""
    return ".".join(module.split(".")[:2]) if module.startswith("mlsh.") else module.split(".")[0]


def structure(path: Path) -> None:
    """The modules and their imports, with one box per sub-package. Imports that others imply are left out."""
    found = imports()
    boxes: dict[str, list[str]] = {}
    for module in sorted(found):
        boxes.setdefault(package(module), []).append(module)
    dot = ["digraph {", 'ranksep=0.5; nodesep=0.2; node [shape=box, style="rounded,filled", fontname=sans]']
    for name, members in boxes.items():
        colour = WORLD if name == "mlsh.envs" else SUB if name.startswith("mlsh.") else MASTER
        label = f"{name.removeprefix('mlsh.')}.py"
        if len(members) > 1:
            files = ", ".join(sorted({member.removeprefix(f"{name}.") for member in members} - {name}))
            label = f"{name.removeprefix('mlsh.')}/\\n" + "\\n".join(textwrap.wrap(files, 30))
        dot.append(f'"{name}" [label="{label}", fillcolor="{colour}"]')
        targets = {package(other) for member in members for other in found[member]} - {name}
        dot += [f'"{name}" -> "{target}" [color="#888888"]' for target in sorted(targets)]
    try:
        graph = "\n".join([*dot, "}"])
        for tool in (["tred"], ["dot", "-Tpng", "-Gdpi=80", "-o", str(path)]):
            graph = subprocess.run(tool, input=graph, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise UserError("Graphviz is missing; install it (on Debian: apt install graphviz)") from None


def main(folder: Annotated[Path, tyro.conf.Positional]) -> None:
    """Draw architecture.png, algorithm.png and structure.png.

    Args:
        folder: Folder for the drawings.
    """
    make_folder(folder)
    for draw in (architecture, algorithm, structure):
        with writing(folder):
            draw(folder / f"{draw.__name__}.png")


if __name__ == "__main__":
    run_command(lambda: cli(main)())
