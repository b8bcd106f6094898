"""install.py, with an index of two small packages: `tiny`, and an `uv` that only writes down its arguments."""

import os
import runpy
import subprocess
import sys
import zipfile

import pytest

from conftest import CODE

SCRIPT = CODE.parent / "install.py"
posix_only = pytest.mark.skipif(os.name != "posix", reason="install.py is for make")
UV = """#!python
import os, pathlib, sys
pathlib.Path(os.environ["CALLED"]).write_text(repr(sys.argv[1:]))
sys.exit(int(os.environ["EXIT_CODE"]))
"""


def write_wheel(folder, name, version, path, content):
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        file = zipfile.ZipInfo(path)
        file.external_attr = 0o100755 << 16  # executable
        wheel.writestr(file, content)
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")


def install(tmp_path, package, **environment):
    """Run install.py in an environment where pip finds packages only in `tmp_path`."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    environment = others | pip | {"CALLED": str(tmp_path / "called"), **environment}
    command = [sys.executable, SCRIPT, tmp_path / "venv", package]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def can_import_tiny(tmp_path):
    return not subprocess.run([tmp_path / "venv/bin/python", "-c", "import tiny"], stderr=subprocess.DEVNULL).returncode


@posix_only
def test_uv_installs_from_where_pip_finds_packages_and_pip_where_uv_fails(tmp_path):
    _, _, version = runpy.run_path(str(SCRIPT))["UV"].partition("==")
    write_wheel(tmp_path, "uv", version, f"uv-{version}.data/scripts/uv", UV)
    write_wheel(tmp_path, "tiny", "1.0", "tiny.py", "")
    run = install(tmp_path, "tiny", EXIT_CODE="0")
    called = (tmp_path / "called").read_text()
    assert run.returncode == 0 and "pip installs" not in run.stderr and not can_import_tiny(tmp_path)
    assert f"'--find-links={tmp_path}', '--no-index'," in called and called.endswith("'tiny']")
    run = install(tmp_path, "tiny", EXIT_CODE="3")
    assert run.returncode == 0 and "uv failed, as shown above; pip installs" in run.stderr and can_import_tiny(tmp_path)


@pytest.mark.slow
@posix_only
def test_pip_installs_where_uv_cannot_be_had(tmp_path):
    write_wheel(tmp_path, "tiny", "1.0", "tiny.py", "")
    run = install(tmp_path, "tiny")
    assert run.returncode == 0 and "pip installs instead" in run.stderr and can_import_tiny(tmp_path)
    assert install(tmp_path, "missing").returncode == 1


def test_a_later_section_of_pips_configuration_replaces_an_earlier_one():
    uv_options = runpy.run_path(str(SCRIPT))["uv_options"]
    configuration = r"""
:env:.find-links='/of/environment'
:env:.no-index='false'
download.find-links='/of/download'
global.cert='/a/file'
global.extra-index-url='\nhttps://a.example/simple?x=1\nhttps://b.example'
global.find-links='/global'
global.no-index='true'
install.find-links='/of/install'
"""
    urls = ["--extra-index-url=https://a.example/simple?x=1", "--extra-index-url=https://b.example"]
    assert uv_options(configuration) == [*urls, "--find-links=/of/environment"]
    assert uv_options("global.index-url='https://c.example'\nglobal.no-index='yes'\nglobal.constraint='a.txt'") == [
        "--index-url=https://c.example",
        "--constraint=a.txt",
        "--no-index",
    ]
