"""The drawings of README and docs, architecture.png, algorithm.png and house.png: python drawings.py FOLDER"""

import ast
import subprocess
from pathlib import Path
from typing import Annotated

import tyro
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from mlsh.errors import UserError, run_command
from mlsh.runs.files import make_folder, writing
from mlsh.settings import cli

CODE = Path(__file__).parent
MASTER, SUB, WORLD = "#f6d9b8", "#cfe3f5", "#dcefd3"


def canvas(width, height):
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(axes, x, y, width, height, text, colour, fontsize=10):
    patch = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.1", fc=colour, ec="#444")
    axes.add_patch(patch)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=fontsize)


def arrow(axes, start, end, text="", at=None, colour="#444", style="-"):
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=colour, linestyle=style))
    if text:
        x, y = at or ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        axes.text(x, y, text, ha="center", va="center", fontsize=9, color=colour)


def architecture(path):
    figure, axes = canvas(8.6, 4.4)
    box(axes, 2.6, 3.4, 2.8, 0.75, "master policy  θ\nlearned anew for every task", MASTER)
    xs, names = (0.6, 3.0, 5.4), (r"sub-policy  $\phi_1$", r"sub-policy  $\phi_2$", r"sub-policy  $\phi_K$")
    for x, name in zip(xs, names, strict=True):
        box(axes, x, 1.75, 2.0, 0.65, name, SUB)
        chosen = name == names[1]
        arrow(axes, (4, 3.4), (x + 1, 2.42), colour="#b35900" if chosen else "#bbb", style="-" if chosen else "--")
        arrow(axes, (x + 0.3, 1.2), (x + 0.3, 1.73))  # the observation goes to each of them
    axes.text(5.2, 2.07, "…", ha="center", va="center")
    axes.text(5.6, 3.2, "every high_len steps: which one runs", fontsize=9, color="#b35900")
    axes.text(7.55, 2.07, "shared by\nall tasks", fontsize=9, va="center", color="#336699")
    box(axes, 2.6, 0.2, 2.8, 0.65, "environment of the sampled task", WORLD)
    arrow(axes, (4.0, 1.73), (4.0, 0.88), "action, every step", (4.85, 1.4), "#b35900")
    axes.plot((2.58, 0.2, 0.2), (0.52, 0.52, 3.77), color="#444", lw=1.2)
    axes.plot((0.2, xs[-1] + 0.3), (1.2, 1.2), color="#444", lw=1.2)
    arrow(axes, (0.2, 3.77), (2.58, 3.77), "observation", (1.2, 3.92))
    figure.savefig(path, dpi=110)


ALGORITHM = (
    (0, "initialise the K sub-policies φ", ""),
    (0, "repeat, until they serve every task:", ""),
    (1, "sample a task (one for each group)", ""),
    (1, "initialise the master θ and its optimiser", "master"),
    (1, "W times:", "warm-up"),
    (2, "play N episodes: θ picks a sub-policy every high_len steps", ""),
    (2, "update θ by PPO, a transition a decision", "master"),
    (1, "U times:", "joint"),
    (2, "play N episodes likewise", ""),
    (2, "update θ by PPO, a transition a decision", "master"),
    (2, "update each φₖ by PPO, from the steps that it acted in", "sub"),
    (0, "at test time: φ frozen, only a new θ learns", ""),
)


def algorithm(path):
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


def imports():
    """Module of code/ -> the others that it imports, wherever in its file."""
    paths = [path for pattern in ("*.py", "studies/*.py", "mlsh/**/*.py") for path in CODE.glob(pattern)]
    names = {".".join(path.relative_to(CODE).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    found = {}
    for name, path in names.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                whole = (f"{node.module}.{alias.name}" for alias in node.names)
                found[name] |= {x if x in names else node.module for x in whole}
        found[name] &= names.keys() - {name, "mlsh"}
    found.pop("mlsh", None)  # which but registers the environments
    return found


def house(path):
    """The modules of the project and their imports, as they stand in the code; what others imply is left out."""
    arrows, dot = imports(), ["digraph {", 'ranksep=0.7; node [shape=box, style="rounded,filled", fontname=sans]']
    for name in sorted(arrows):
        script = not name.startswith("mlsh.")
        colour = MASTER if script else WORLD if name.startswith("mlsh.envs") else SUB
        label = f"{name.replace('.', '/')}.py" if script else name.removeprefix("mlsh.")
        dot.append(f'"{name}" [label="{label}", fillcolor="{colour}"]')
        dot += [f'"{name}" -> "{other}" [color="#888888"]' for other in sorted(arrows[name])]
    try:
        graph = "\n".join([*dot, "}"])
        for tool in (["tred"], ["dot", "-Tpng", "-Gdpi=60", "-o", path]):
            graph = subprocess.run(tool, input=graph, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise UserError("Graphviz is missing; install it (Debian: graphviz)") from None


def main(folder: Annotated[Path, tyro.conf.Positional]):
    """Draw architecture.png, algorithm.png and house.png.

    Args:
        folder: Where to.
    """
    make_folder(folder)
    for draw in (architecture, algorithm, house):
        with writing(folder):
            draw(folder / f"{draw.__name__}.png")


if __name__ == "__main__":
    run_command(lambda: cli(main)())
