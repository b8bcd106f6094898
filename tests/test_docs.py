"""What the documentation names exists: linked files and headings, flags, paths. And it stays short."""

import html
import os
import re
import subprocess
import sys

import pytest

from conftest import CODE
from mlsh.baselines.option_critic import OptionCriticConfig
from mlsh.baselines.rl2 import RL2Config
from mlsh.config import Config
from mlsh.settings import AdaptationSettings

ROOT = CODE.parent
FOLDERS = ("code", "mlsh", "docs", "examples", "tests", "benchmarks")
OTHERS = {
    "pip": {"--index-url", "--extra-index-url", "--no-deps"},
    "torchrun": {
        "--nnodes",
        "--no-python",
        "--standalone",
        "--nproc-per-node",
        "--rdzv-backend",
        "--rdzv-id",
        "--rdzv-endpoint",
        "--signals-to-handle",
    },
    "sbatch": {"--array", "--time", "--nodes", "--ntasks-per-node", "--cpus-per-task", "--signal", "--requeue"},
    "sbatch's log": {"--open-mode"},
    "uv": {"--no-sources"},
    "sb3_masters.py": {"--algorithm", "--run", "--env_steps", "--every"},
    "tensorboard": {"--logdir"},
    "wandb": {"--entity"},
    "ruff": {"--check"},
}

# Prints the help of every command, one after the other. In one process: importing torch is what takes time.
PRINT_ALL_HELP = """
import contextlib, pathlib, runpy, sys
sys.path.insert(0, ".")
scripts = ("train", "render", "evaluate", "report", "benchmark", "train_rl2", "train_option_critic")
studies = [f"studies.{path.stem}" for path in pathlib.Path("studies").glob("*.py") if path.stem != "__init__"]
for name in (*scripts, *studies):
    sys.argv = [name, "--help"]
    with contextlib.suppress(SystemExit):
        runpy.run_module(name, run_name="__main__")
for path in pathlib.Path("../benchmarks").glob("*.py"):
    if "argparse" in path.read_text():
        sys.argv = [str(path), "--help"]
        with contextlib.suppress(SystemExit):
            runpy.run_path(str(path), run_name="__main__")
"""


def pages(*patterns):
    """The Markdown files of the repository that match; without those in run folders."""
    found = {path for pattern in patterns for path in ROOT.glob(pattern)}
    return sorted(path for path in found if not {"runs", "wandb"} & set(path.relative_to(ROOT).parts))


def short(path):
    return path.relative_to(ROOT).as_posix()


def without_code_blocks(text):
    """The text with every line of a fenced code block left empty, so that line numbers stay."""
    lines, fence = [], None
    for line in text.splitlines():
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and fence is None:
            fence, line = mark[1], ""
        elif fence:
            fence = None if mark and mark[1].startswith(fence) else fence
            line = ""
        lines.append(line)
    return "\n".join(lines)


def inline_code(text):
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", without_code_blocks(text))


def anchors(path):
    """What a link to a heading of the page may be, by GitHub's rule, and the ids of HTML in it."""
    found, text = {}, without_code_blocks(path.read_text())
    for heading in re.findall(r"^#{1,6} +(.+?)(?: +#+)? *$", text, re.M):
        title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", html.unescape(heading))
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"<[^>]+>", "", title).lower()).replace(" ", "-")
        seen = found[slug] = found.get(slug, -1) + 1
        if seen:
            found[f"{slug}-{seen}"] = 0
    return set(found) | set(re.findall(r"<\w+[^>]* (?:id|name)=\"([^\"]+)\"", text))


def links(path):
    """The targets of links and images, Markdown's and HTML's, that are not on the web."""
    text = re.sub(r"(?<!`)`[^`\n]+`(?!`)", "code", without_code_blocks(path.read_text()))
    found = re.findall(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)", text)
    found += re.findall(r"<(?:img|a|source|video)\b[^>]*\b(?:src|href)=\"([^\"]+)\"", text)
    found += re.findall(r"^\[[^\]]+\]: +(\S+)", text, re.M)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize(
    "heading, anchor",
    [
        ("Your own environment", "your-own-environment"),
        ("Does it work? (60 seeds)", "does-it-work-60-seeds"),
        ("`-W` and `--num_sub_policies`", "-w-and---num_sub_policies"),
        ("RL² — a [baseline](x.md)", "rl²--a-baseline"),
    ],
)
def test_anchors_follow_the_rule_of_github(tmp_path, heading, anchor):
    page = tmp_path / "page.md"
    page.write_text(f"# {heading}\n```\n# no heading\n```\n## {heading}\n")
    assert anchors(page) == {anchor, f"{anchor}-1"}


def test_internal_links_lead_somewhere():
    broken = []
    for page in pages("*.md", "[!.]*/**/*.md"):
        for link in links(page):
            file, _, anchor = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            if not target.exists():
                broken.append(f"{short(page)}: {link} (there is no such file)")
            elif anchor and target.suffix == ".md" and anchor not in anchors(target):
                broken.append(f"{short(page)}: {link} (there is no such heading)")
    assert not broken, "\n".join(broken)


@pytest.fixture(scope="session")
def our_flags():
    wide = os.environ | {"COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", PRINT_ALL_HELP], cwd=CODE, env=wide, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    flags = set(re.findall(r"--\w+", done.stdout))
    assert {"--env", "--groups", "--held_out", "--figures", "--help"} <= flags
    return flags


def test_flags_exist(our_flags):
    kinds = (Config, RL2Config, OptionCriticConfig, AdaptationSettings)
    earlier = {f"--{name}" for kind in kinds for name in (*kind.RENAMED, *kind.REMOVED)}
    known = our_flags.union(earlier, *OTHERS.values())
    unknown = []
    for page in pages("README.md", "docs/guide/*.md", "docs/reference/*.md", "docs/results/*.md"):
        text = re.sub(r"\]\([^)]*\)", "]", page.read_text())  # anchors have hyphens, too
        flags = set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*(?<!_)\b", text))
        unknown += [f"{short(page)}: {flag}" for flag in sorted(flags - known)]
    assert not unknown, "\n".join(unknown)


def test_paths_in_backticks_exist():
    missing = []
    for page in pages("README.md", "docs/guide/*.md"):
        for code in inline_code(page.read_text()):
            for word in code.split():
                name = word.partition("::")[0].rstrip(",;:")
                if not re.match(rf"({'|'.join(FOLDERS)})/[\w*][\w./*-]*$", name):
                    continue
                base = CODE if name.startswith("mlsh/") else ROOT
                if not any(base.glob(name.rstrip("/"))):
                    missing.append(f"{short(page)}: {name}")
    assert not missing, "\n".join(missing)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 220


def test_guide_and_reference_are_short():
    texts = [page.read_text() for page in pages("docs/guide/*.md", "docs/reference/*.md")]
    words = [word for text in texts for word in text.split() if any(map(str.isalnum, word))]
    assert len(words) <= 8_000
