"""Meta Learning Shared Hierarchies; importing this package registers its environments with Gymnasium."""

__version__ = "0.4.0"

from mlsh import process as process  # isort: split

from mlsh import envs as envs
from mlsh.agent import Agent as Agent
from mlsh.agent import OptionActions as OptionActions
from mlsh.agent import VectorOptionActions as VectorOptionActions
from mlsh.agent import load as load
