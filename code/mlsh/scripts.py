"""The package of the commands: the files in `mlsh/scripts` of an installed package, or those in `code/` of a checkout.

For example, `mlsh.scripts.train` is `train.py`, and `mlsh-train` calls its `main`.
"""

from pathlib import Path

__path__ = [str(Path(__file__).with_suffix("")), str(Path(__file__).parents[1])]  # setup.py makes the first
