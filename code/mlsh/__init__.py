"""Meta Learning Shared Hierarchies; importing this package registers its environments with Gymnasium."""

__version__ = "0.4.0"

from mlsh import envs as envs
