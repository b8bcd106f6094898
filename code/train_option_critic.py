"""Train option-critic or actor-critic, baselines of the paper: python train_option_critic.py --help.

All of it is in mlsh/option_critic.py.
"""

from mlsh.errors import run_command
from mlsh.option_critic import main

if __name__ == "__main__":
    run_command(main)
