"""From records to figures: what each method solved, what its word was worth, and what it cost. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from atlas.bench.statistics import Difference, Estimate, mean_over_tasks, paired, pass_at_k, ratio_over_tasks
from atlas.bench.values import BenchSettings, Method, Record
from atlas.errors import OperatorError

K = TypeVar("K", str, int)
KS = (1, 2, 3, 5, 10, 20, 50, 100)


class Figures(NamedTuple):
    """One row of the report. Rates are over tasks in which nothing of ours failed.

    Attributes:
        solved: the chosen answer passes the hidden tests: pass@1 of the method as a whole.
        solved_by_seed: likewise, each seed by itself.
        verified: answers called verified, of all.
        false_verified: verified answers that fail the hidden or the stronger tests, of the verified ones.
        oracle: by k, whether one of k samples is right; no method may choose by it.
        num_failures: solvings that ended by a failure of ours; in no rate.
        tokens: generated per solving; `sandbox_s` and `wall_s` likewise.
        groups: `solved` of each group of tasks.
    """

    method: Method
    solved: Estimate
    solved_by_seed: tuple[float, ...]
    verified: Estimate
    false_verified: Estimate
    num_verified: int
    num_false: int
    oracle: dict[int, Estimate]
    num_solvings: int
    num_failures: int
    tokens: float
    sandbox_s: float
    wall_s: float
    groups: dict[str, Estimate]

    @property
    def tokens_per_solved(self) -> float | None:
        """Tokens spent for each solving that was right."""
        return self.tokens / self.solved.value if self.solved.value else None


def figures_of(settings: BenchSettings, records: Sequence[Record]) -> list[Figures]:
    """One row for each method that has a record."""
    rows = [(method, [record for record in records if record.cell.method == method.name]) for method in settings.methods]
    return [_figures(method, found) for method, found in rows if found]


def solved_by_method(settings: BenchSettings, records: Sequence[Record]) -> dict[str, Estimate]:
    """Right answers alone, by the titles of the methods that have a record: a tenth of the work of all figures."""
    rows = [(method.title, [record for record in records if record.cell.method == method.name]) for method in settings.methods]
    return {title: _solved([record for record in found if record.failure is None]) for title, found in rows if found}


def compare_records(first: Sequence[Record], second: Sequence[Record]) -> Difference:
    """What the second solved beside the first, on the tasks that both have; of each, all its seeds, as greedy has but one.

    Raises:
        OperatorError: there is no task that both have solved without a failure of ours.
    """
    left, right = _by_task(first), _by_task(second)
    shared = [task for task in left if task in right]
    if not shared:
        raise OperatorError("the two have no task in common; compare benches of the same suite")
    return paired([left[task] for task in shared], [right[task] for task in shared])


def _figures(method: Method, records: Sequence[Record]) -> Figures:
    sound = [record for record in records if record.failure is None]
    by_task = _grouped(sound, lambda record: record.cell.task)
    verified = [[record for record in group if record.is_verified] for group in by_task.values()]
    false = [[record for record in group if not record.passed_stronger] for group in verified]
    return Figures(
        method=method,
        solved=_solved(sound),
        solved_by_seed=tuple(_share(group) for _, group in sorted(_grouped(sound, lambda record: record.cell.seed).items())),
        verified=ratio_over_tasks(_counts(verified), _counts(list(by_task.values()))),
        false_verified=ratio_over_tasks(_counts(false), _counts(verified)),
        num_verified=sum(map(len, verified)),
        num_false=sum(map(len, false)),
        oracle=_oracle(list(by_task.values())),
        num_solvings=len(sound),
        num_failures=len(records) - len(sound),
        tokens=_mean([record.num_tokens for record in sound]),
        sandbox_s=_mean([record.sandbox_s for record in sound]),
        wall_s=_mean([record.wall_s for record in sound]),
        groups={name: _solved(group) for name, group in sorted(_grouped(sound, lambda record: record.group).items()) if name},
    )


def _solved(records: Sequence[Record]) -> Estimate:
    return mean_over_tasks([_share(group) for group in _grouped(records, lambda record: record.cell.task).values()])


def _oracle(by_task: Sequence[Sequence[Record]]) -> dict[int, Estimate]:
    """pass@k over all samples of a task, those of all seeds; only for k that every task has samples for."""
    known = [[sample.passed for record in group for sample in record.samples if sample.passed is not None] for group in by_task]
    most = min(map(len, known), default=0)
    per_seed = max((len(record.samples) for group in by_task for record in group), default=0)
    ks = [k for k in sorted({*KS, per_seed}) if 0 < k <= min(most, per_seed)]
    return {k: mean_over_tasks([pass_at_k(len(samples), sum(samples), k) for samples in known]) for k in ks}


def _by_task(records: Sequence[Record]) -> dict[str, list[float]]:
    """Whether it was right, of each task, in the order of seeds."""
    found: dict[str, list[float]] = {}
    for record in sorted(records, key=lambda record: record.cell.seed):
        if record.failure is None:
            found.setdefault(record.cell.task, []).append(float(record.passed))
    return found


def _grouped(records: Sequence[Record], key: Callable[[Record], K]) -> dict[K, list[Record]]:
    found: dict[K, list[Record]] = {}
    for record in records:
        found.setdefault(key(record), []).append(record)
    return found


def _counts(groups: Sequence[Sequence[Record]]) -> list[float]:
    return [float(len(group)) for group in groups]


def _share(records: Sequence[Record]) -> float:
    return _mean([float(record.passed) for record in records])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
