"""What is installed: the declared dependencies, the wheel, and the commands in it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import CODE, TINY

ROOT = CODE.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = {f"mlsh-{name}" for name in ("train", "render", "evaluate", "report")}


def requirements(lines):
    """The requirement in each line, by the name of its package."""
    return {canonicalize_name(x.name): x for x in map(Requirement, lines)}


NEEDED = requirements(PROJECT["dependencies"])
EXTRAS = requirements(line for extra in PROJECT["optional-dependencies"].values() for line in extra)


def undeclared(declared, *folders):
    """The modules from elsewhere that files in these folders import, and that no declared package provides."""
    names, own = set(), {"mlsh"}
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        own.add(path.stem)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    providers = packages_distributions()
    return {
        x
        for x in names - own - sys.stdlib_module_names
        if not declared & set(map(canonicalize_name, (*providers.get(x, ()), x)))
    }


def test_what_is_imported_is_declared():
    assert not undeclared(NEEDED.keys(), "code")
    assert undeclared(NEEDED.keys() - {"pillow", "glfw"}, "code") == {"PIL", "glfw"}
    assert not undeclared(NEEDED.keys() | EXTRAS.keys(), "code", "tests", "benchmarks", "docs")


def test_every_dependency_is_pinned_within_its_range():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = requirements(line for line in lines if not line.startswith("#"))
    ranges = NEEDED | requirements(PROJECT["optional-dependencies"]["test"])
    assert pins.keys() == ranges.keys()
    for name, pin in pins.items():
        (version,) = (x.version for x in pin.specifier)
        assert ranges[name].specifier.contains(version), f"{pin} is outside {ranges[name]}"
        assert ranges[name].extras == pin.extras, name


@pytest.fixture
def wheel(tmp_path):
    """The wheel of the files that git tracks, or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    source = tmp_path / "source"
    for name in listed.stdout.splitlines():
        if name.startswith("code/") or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, tmp_path], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tmp_path / done.stdout.splitlines()[-1]


def test_the_wheel_has_the_package_and_the_scripts_within_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    about = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
    assert {name.partition("/")[0] for name in names} == {"mlsh", about}
    scripts = {f"mlsh/scripts/{path.name}" for path in CODE.glob("*.py")}
    modules = {path.relative_to(CODE).as_posix() for path in (CODE / "mlsh").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == scripts | modules
    assert "mlsh/py.typed" in names
    version = re.search(r'^__version__ = "(.+)"', (CODE / "mlsh" / "__init__.py").read_text(), re.M)
    metadata = zipfile.ZipFile(wheel).read(f"{about}/METADATA").decode()
    assert version and f"\nVersion: {version[1]}\n" in metadata and "\n# Meta Learning Shared Hierarchies" in metadata
    assert set(PROJECT["scripts"]) == COMMANDS


@pytest.mark.slow
@pytest.mark.very_slow
def test_the_commands_of_an_installed_wheel(wheel, tmp_path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(install, check=True, capture_output=True)
    (about,) = site.glob("*.dist-info")
    source = {"url": "https://example.org/mlsh.git", "vcs_info": {"vcs": "git", "commit_id": "abc1234"}}
    (about / "direct_url.json").write_text(json.dumps(source))  # as `pip install git+https://example.org/mlsh.git` does
    environment = os.environ | {"PYTHONPATH": str(site), "PATH": f"{site / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def run(*words):
        return subprocess.run(list(map(str, words)), cwd=tmp_path, env=environment, capture_output=True, text=True)

    for command in sorted(COMMANDS):
        done = run(command, "--help")
        assert f"usage: {command} " in done.stdout and f"\n    {command} " in done.stdout, done.stderr
        assert "python " not in done.stdout
    done = run("mlsh-render")
    assert done.returncode == 2 and done.stderr.startswith("mlsh-render: error: "), done.stderr
    assert run("mlsh-train", *TINY, "--out", "runs/a").returncode == 0
    described = json.loads((tmp_path / "runs/a/config.json").read_text())["machine"]
    assert described["commit"] == "abc1234" and f"mlsh-{described['packages']['mlsh']}.dist-info" == about.name
    for words in (
        ("mlsh-render", "runs/a"),
        ("mlsh-evaluate", "runs/a", "--seeds", "1", "--updates", "1"),
        ("mlsh-report", "runs/a"),
    ):
        done = run(*words)
        assert done.returncode == 0 and done.stdout, done.stderr
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    done = run(*torchrun, "mlsh-train", *TINY, "--out", "runs/b")
    assert done.returncode == 0 and (tmp_path / "runs/b/results.json").exists(), done.stderr
