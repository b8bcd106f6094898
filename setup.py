"""What pyproject.toml cannot say: scripts that are next to the package in a checkout are within it once installed."""

from setuptools import find_packages, setup

setup(package_dir={"": "code", "mlsh.scripts": "code"}, packages=[*find_packages("code"), "mlsh.scripts"])
