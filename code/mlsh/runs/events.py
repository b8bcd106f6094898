"""Event files for TensorBoard."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import imageio.v3 as iio
from tabulate import tabulate
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[reportAttributeAccessIssue]
from torch.utils.tensorboard import SummaryWriter

from mlsh.runs.files import writing


class TensorBoardTracker:
    """Writes to event files in a folder what wandb gets, except the names without a section, and the settings as text.

    `start` is the number of env steps at which a continued run starts. TensorBoard hides what was logged after it.
    """

    def __init__(self, folder: Path, start: int, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        table = tabulate(((name, json.dumps(x)) for name, x in settings.items()), ("setting", "value"), "github")
        with writing(folder):
            self._writer = SummaryWriter(str(folder), purge_step=start + 1)
            self._writer.add_text("settings", table, start)

    def log(self, values: Mapping[str, Any], env_steps: int) -> None:
        with writing(self._folder):
            for name, x in values.items():
                if "/" in name:
                    self._writer.add_scalar(name, x, env_steps)

    def log_image(self, name: str, path: Path, env_steps: int) -> None:
        """Log the film (.gif) or picture at `path` as it is: TensorBoard's browser plays a GIF."""
        height, width = iio.improps(path, index=0).shape[:2]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
        with writing(self._folder):
            self._writer._get_file_writer().add_summary(
                Summary(value=[Summary.Value(tag=name, image=image)]), env_steps
            )

    def keep_best(self, snapshot: Mapping[str, Any], trained_reward: float) -> None:
        pass

    def finish(self, results: Mapping[str, Any], summary: Mapping[str, Any], env_steps: int) -> None:
        self.log_image("test/curves", self._folder / "curves.png", env_steps)
        self.close()

    def close(self) -> None:
        with writing(self._folder):
            self._writer.close()
