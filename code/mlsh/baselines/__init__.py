"""The baselines of the paper: RL², option-critic and actor-critic."""
