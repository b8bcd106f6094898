"""Meta Learning Shared Hierarchies; importing this package registers its environments with Gymnasium."""

from mlsh import envs as envs

__version__ = "0.4.0"
