"""Reading and writing a run's metrics.csv, and means over rows."""

import csv
import io
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mlsh.errors import UserError
from mlsh.runs.files import UNENCODABLE, reading, write_whole, writing

Row = dict[str, Any]  # column -> value


def read_metrics(folder: Path | str) -> list[dict[str, str]]:
    """Return the rows of a run folder's metrics.csv; an incomplete last line, which a kill may leave, is left out."""
    path = Path(folder) / "metrics.csv"
    if not path.exists():
        return []
    with reading(path), open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def means_of(rows: Sequence[Row], names: Iterable[str]) -> dict[str, float]:
    """Return the mean of each named column over the rows that have it; columns that no row has are left out."""
    known = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    return {name: sum(x) / len(x) for name, x in known.items() if x}


def highest_mean(rows: Sequence[dict[str, str]], column: str) -> float:
    """Return the highest mean of a column over the rows of an outer iteration, or minus infinity without rows."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["iteration"], []).append(float(row[column]))
    return max((sum(x) / len(x) for x in values.values()), default=-math.inf)


def check_rows(rows: Sequence[dict[str, str]], end: int) -> None:
    """Raise a ValueError unless the rows are those of consecutive outer iterations up to `end`, all complete.

    If earlier rows are missing, because the file was moved away once, a line on stderr says so.
    """
    iterations = [int(row["iteration"]) for row in rows]
    first = iterations[0] if rows else end
    if first:
        print(f"metrics.csv has no rows before outer iteration {first}", file=sys.stderr)
    if sorted(set(iterations)) != [*range(first, end)] or iterations != sorted(iterations):
        raise ValueError("rows are missing")
    if rows and "group" in rows[0]:  # which has one row in each outer iteration
        groups = len(rows) // (end - first)
        if [int(row["group"]) for row in rows] != [*range(groups)] * (end - first):
            raise ValueError("rows are missing")
    for row in rows:
        for name, text in row.items():
            if name != "task":
                float(text or 0)


class MetricsFile:
    """Appends rows to a run folder's metrics.csv.

    A continued run drops rows from outer iteration `start` on, which a killed run may have written after its last
    checkpoint. A column that first appears in a later row is added to the whole file, because the names that an
    environment reports are not known before.
    """

    def __init__(self, folder: Path, columns: Sequence[str], start: int) -> None:
        """Open the file. Raise a UserError if it cannot be written, is damaged or does not belong to this run."""
        self._folder, self._path = folder, folder / "metrics.csv"
        try:
            kept = [row for row in read_metrics(folder) if int(row["iteration"]) < start] if start else []
            check_rows(kept, start)
            added = [name for name in (kept[0] if kept else ()) if name.startswith("final_")]
            self._rewrite([*columns, *added], kept)
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise UserError(
                f"{self._path} is damaged or does not belong to this run ({error}); repair it or move it away"
            ) from None

    def _rewrite(self, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """Write the whole file and open it for more rows."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self._path, text.getvalue())
        with writing(self._folder):
            self._file = open(self._path, "a", newline="", encoding="utf-8", errors=UNENCODABLE)  # noqa: SIM115
        self._columns = list(columns)
        self._writer = csv.DictWriter(self._file, columns)

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows and flush them to the disk, so that no checkpoint is ahead of this file after a crash."""
        if new := [name for row in rows for name in row if name not in self._columns]:
            self.close()
            self._rewrite([*self._columns, *dict.fromkeys(new)], read_metrics(self._folder))
        with writing(self._folder):
            for row in rows:
                self._writer.writerow({k: f"{x:.6g}" if isinstance(x, float) else x for k, x in row.items()})
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with writing(self._folder):
            self._file.close()
