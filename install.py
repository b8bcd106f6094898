"""Create a virtual environment, and install into it: python install.py FOLDER, followed by arguments for `pip install`.

The Makefile calls this. It installs with uv, which is several times as fast as pip, or with pip if uv fails.
"""

import ast
import subprocess
import sys

UV = "uv==0.13.9"
SECTIONS = ("global", "install", ":env:")  # of pip's configuration; a later one replaces what an earlier one says


def uv_options(configuration: str) -> list[str]:
    """Options of uv for what `pip config list` printed: where packages come from, and which versions are allowed.

    uv itself does not read pip's configuration.
    """
    lines = dict(line.partition("=")[::2] for line in configuration.splitlines())
    settings: dict[str, list[str]] = {}
    for section in SECTIONS:
        for option in ("index-url", "extra-index-url", "find-links", "constraint", "no-index"):
            if value := lines.get(f"{section}.{option}"):
                settings[option] = ast.literal_eval(value).split()
    offline = settings.pop("no-index", ["0"])[0].lower() in ("1", "y", "yes", "t", "true", "on")
    options = [f"--{option}={value}" for option, values in settings.items() for value in values]
    return options + ["--no-index"] * offline


def succeeds(*command: str) -> bool:
    try:
        return not subprocess.run(command).returncode
    except OSError as error:
        print(error, file=sys.stderr)
        return False


def main(folder: str, *packages: str) -> None:
    if not succeeds(sys.executable, "-m", "venv", folder):
        sys.exit(1)
    python = f"{folder}/bin/python"
    pip = [python, "-m", "pip"]
    configuration = subprocess.run([*pip, "config", "list"], stdout=subprocess.PIPE, text=True, check=True).stdout
    uv = [f"{folder}/bin/uv", "pip", "install", "--python", python, *uv_options(configuration)]
    uv += ["--no-sources", "--index-strategy=unsafe-best-match"]  # like pip: the newest version from any index
    if not (succeeds(*pip, "install", "--only-binary=:all:", UV) and succeeds(*uv, *packages)):
        print("install.py: uv failed, as shown above; pip installs instead", file=sys.stderr)
        if not succeeds(*pip, "install", *packages):
            sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
