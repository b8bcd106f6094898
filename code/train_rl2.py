"""Train RL², the recurrent baseline of the paper: python train_rl2.py --help. All of it is in mlsh/baselines/rl2.py."""

from mlsh.baselines.rl2 import main
from mlsh.errors import run_command

if __name__ == "__main__":
    run_command(main)
