"""The benches of a data directory, each in a folder of its own name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from atlas.bench.figures import compare_records
from atlas.bench.journal import FILE_NAME, read_journal
from atlas.bench.statistics import Difference
from atlas.bench.values import BenchSettings, Record
from atlas.errors import OperatorError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Kept(NamedTuple):
    """What is on disk of a bench; `at`: when its last record came, as Unix time."""

    name: str
    at: float
    settings: BenchSettings
    records: list[Record]

    @property
    def num_planned(self) -> int:
        seeds = [len(self.settings.seeds) if method.is_sampled else 1 for method in self.settings.methods]
        return self.settings.num_tasks * sum(seeds)


class Runs:
    """Reads only. Every method raises OperatorError: no such bench, or a file that is none."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "bench" / "runs"

    def folder(self, name: str) -> Path:
        """Where a bench is, or will be."""
        if not NAME.fullmatch(name):
            raise OperatorError(f"'{name}' cannot be the name of a bench: letters, digits, dots, dashes and underscores can")
        return self._path / name

    def names(self) -> list[str]:
        """The newest last."""
        files = sorted(self._path.glob(f"*/{FILE_NAME}"), key=lambda path: path.stat().st_mtime)
        return [path.parent.name for path in files]

    def read(self, name: str) -> Kept:
        folder = self.folder(name)
        settings, records = read_journal(folder)
        return Kept(name, (folder / FILE_NAME).stat().st_mtime, settings, records)

    def compare(self, first: str, second: str) -> dict[str, Difference]:
        """Paired, task by task: each method that both have; or those named behind colons, as in A:greedy and B:ralph."""
        left, right = self._methods(first), self._methods(second)
        if ":" in first or ":" in second:
            if len(left) > 1 or len(right) > 1:
                raise OperatorError("name a method on both sides, as in A:greedy B:ralph, or on neither")
            pairs = [(next(iter(left)), next(iter(right)))]
        else:  # a bench that is under way may not have come to all of them
            pairs = [(method, method) for method, records in left.items() if records and right.get(method)]
        if not pairs:
            raise OperatorError(f"'{first}' and '{second}' have no method in common: name one of each, as in A:greedy B:ralph")
        names = first.partition(":")[0], second.partition(":")[0]
        return {
            f"{names[0]}:{before} to {names[1]}:{after}": compare_records(left[before], right[after]) for before, after in pairs
        }

    def _methods(self, named: str) -> dict[str, list[Record]]:
        """Records by method, of NAME or NAME:METHOD."""
        name, _, method = named.partition(":")
        kept = self.read(name)
        names = [one.name for one in kept.settings.methods]
        if method and method not in names:
            raise OperatorError(f"'{name}' has no method '{method}'; it has {', '.join(names)}")
        return {one: [r for r in kept.records if r.cell.method == one] for one in ([method] if method else names)}
