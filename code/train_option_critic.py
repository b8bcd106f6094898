"""Train option-critic or actor-critic, baselines of the paper: python train_option_critic.py --help.

All of it is in mlsh/baselines/option_critic.py.
"""

from mlsh.baselines.option_critic import main
from mlsh.errors import run_command

if __name__ == "__main__":
    run_command(main)
