"""A run's metrics.csv."""

import csv
import io
import os
from pathlib import Path

from mlsh.errors import UserError
from mlsh.files import write_whole, writing


def read_metrics(folder):
    """The rows of a run folder's metrics.csv as dicts of strings; a last line cut short by a kill is left out."""
    if not (Path(folder) / "metrics.csv").exists():
        return []
    with open(Path(folder) / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


class Metrics:
    """A run folder's metrics.csv. Rows of outer iterations from `begun` on, which a killed run may have left, go."""

    def __init__(self, folder, columns, begun):
        self._folder = folder
        path = folder / "metrics.csv"
        try:
            kept = [row for row in read_metrics(folder) if int(row["iteration"]) < begun] if begun else []
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, columns)
            writer.writeheader()
            writer.writerows(kept)
        except (KeyError, ValueError) as error:
            raise UserError(f"{path} is not of this run ({error!r}); move it away") from None
        write_whole(path, text.getvalue())
        with writing(folder):
            self._file = open(path, "a", newline="")  # noqa: SIM115
        self._writer = csv.DictWriter(self._file, columns)

    def write(self, rows):
        with writing(self._folder):
            for row in rows:
                self._writer.writerow({k: f"{x:.6g}" if isinstance(x, float) else x for k, x in row.items()})
            self._file.flush()
            os.fsync(self._file.fileno())  # no checkpoint is ahead of it, even if the machine goes down

    def close(self):
        with writing(self._folder):
            self._file.close()
