"""A run's metrics.csv, and means over rows as it has them."""

import csv
import io
import os
from pathlib import Path

from mlsh.errors import UserError
from mlsh.runs.files import write_whole, writing


def read_metrics(folder):
    """The rows of a run folder's metrics.csv as dicts of strings; a last line cut short by a kill is left out."""
    if not (Path(folder) / "metrics.csv").exists():
        return []
    with open(Path(folder) / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def means_of(rows, names):
    """The means over rows of what they have by these names; what none has is left out."""
    known = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    return {name: sum(x) / len(x) for name, x in known.items() if x}


class Metrics:
    """A run folder's metrics.csv. Rows of outer iterations from `begun` on, which a killed run may have left, go.

    A column that first appears in a later row is added: what an environment reports is not known before.
    """

    def __init__(self, folder, columns, begun):
        self._folder, self._path = folder, folder / "metrics.csv"
        try:
            kept = [row for row in read_metrics(folder) if int(row["iteration"]) < begun] if begun else []
            added = [name for name in (kept[0] if kept else ()) if name.startswith("final_")]
            self._begin([*columns, *added], kept)
        except (KeyError, ValueError) as error:
            raise UserError(f"{self._path} is not of this run ({error!r}); move it away") from None

    def _begin(self, columns, rows):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self._path, text.getvalue())
        with writing(self._folder):
            self._file = open(self._path, "a", newline="")  # noqa: SIM115
        self._writer = csv.DictWriter(self._file, columns)

    def write(self, rows):
        known = self._writer.fieldnames
        if new := [name for row in rows for name in row if name not in known]:
            self.close()
            self._begin([*known, *dict.fromkeys(new)], read_metrics(self._folder))
        with writing(self._folder):
            for row in rows:
                self._writer.writerow({k: f"{x:.6g}" if isinstance(x, float) else x for k, x in row.items()})
            self._file.flush()
            os.fsync(self._file.fileno())  # no checkpoint is ahead of it, even if the machine goes down

    def close(self):
        with writing(self._folder):
            self._file.close()
