"""Records of a bench that nobody ran, for what is made of them."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from atlas.bench import BenchSettings, Journal, Method, Record, Runs, standard_methods
from atlas.bench.values import Cell, Sample
from atlas.types import OurFailure
from tests.bench.conftest import settings_of, suite

METHODS = standard_methods(k=3, attempts=2)


def made_up(methods: Sequence[Method] = METHODS, num_tasks: int = 8) -> tuple[BenchSettings, list[Record]]:
    """Records of every method, two seeds; one of them failed through us."""
    tasks = suite(num_tasks)
    records = [
        Record(
            cell=Cell(task=one.id, method=method.name, seed=seed),
            group=f"depth {number % 2}",
            status="verified" if (number + seed) % 3 else "failed",
            passed=number % 2 == 0,
            passed_stronger=number % 4 == 0,
            samples=tuple(Sample(state="passed", passed=i < number % 4) for i in range(3))
            if method.until == "exhaustive"
            else (),
            num_tokens=100 * (row + 1),
        )
        for row, method in enumerate(methods)
        for seed in ((1, 2) if method.is_sampled else (1,))
        for number, one in enumerate(tasks.tasks)
    ]
    records[-1] = replace(records[-1], failure=OurFailure(code="sandbox_unavailable", message="gone"))
    return settings_of(tasks, methods, (1, 2)), records


def keep(runs: Runs, name: str, *, num_records: int | None = None) -> None:
    """On disk, as `atlas bench` would have written them; or the first of them."""
    settings, records = made_up()
    journal = Journal(runs.folder(name), settings)
    for record in records[:num_records]:
        journal.append(record)
    journal.close()
