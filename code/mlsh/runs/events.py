"""Event files for TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from mlsh.runs.files import writing


class TensorBoardTracker:
    """Writes to event files in the run folder what wandb gets, under the same names, except the videos.

    `start` is the number of env steps at which a continued run starts. TensorBoard hides what was logged after it.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self._folder = folder
        with writing(folder):
            self._writer = SummaryWriter(str(folder), purge_step=start + 1)

    def log(self, values: Mapping[str, Any], env_steps: int) -> None:
        with writing(self._folder):
            for name, x in values.items():
                self._writer.add_scalar(name, x, env_steps)

    def log_video(self, names: Sequence[str], path: Path, env_steps: int) -> None:
        pass

    def finish(self, results: Mapping[str, Any], summary: Mapping[str, Any], env_steps: int) -> None:
        self.log(summary, env_steps)
        self.close()

    def close(self) -> None:
        with writing(self._folder):
            self._writer.close()
