"""Runs a bench: every task with every method and seed, some at a time; grades what came of it, once it is closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing

import msgspec

from atlas.bench.journal import Journal, latest
from atlas.bench.judge import Grade, RunProgram
from atlas.bench.methods import policy_of
from atlas.bench.values import Cell, Method, Record, Sample, Suite, Task
from atlas.errors import AtlasError, OperatorError
from atlas.ralph import Policy
from atlas.types import Candidate, Event, OurFailure, Request, Run, RunClosed

Solve = Callable[[Request, Policy], AsyncIterator[Event]]
OnRecord = Callable[[Record, int, int], None]  # (what is new, how many are done, of how many)
GO_ON = "mend it, and give the same command with the same --name to go on"
MAX_FAILURES_IN_A_ROW = 6  # of ours; more of them would be the same one


class Bench:
    """One bench while it runs.

    Args:
        suite: what is solved.
        methods: in an order in which a method comes after the one whose tokens it may spend.
        seeds: of what is sampled.
        model: its id.
        solve: solves a request; everything goes through it.
        run: runs a program for the judge.
        parallel: tasks at the same time.
    """

    def __init__(
        self,
        suite: Suite,
        methods: Sequence[Method],
        *,
        seeds: Sequence[int],
        model: str,
        solve: Solve,
        run: RunProgram,
        parallel: int = 2,
    ) -> None:
        self._suite, self._methods, self._seeds = suite, methods, seeds
        self._model, self._solve, self._run, self._parallel = model, solve, run, parallel

    async def measure(self, journal: Journal, on_record: OnRecord) -> list[Record]:
        """Measure what the journal does not hold yet; the latest record of every cell.

        Raises:
            OperatorError: something of ours fails again and again; what was measured stays.
        """
        done, wanted = journal.done, self._cells()
        num_done, num_failed = sum(cell in done for cell in wanted), 0
        spent = {record.cell: record.num_tokens for record in latest(journal.records) if record.failure is None}
        for method in self._methods:  # one after the other: a later one may spend what an earlier one has spent
            left = (cell for cell in wanted if cell.method == method.name and cell not in done)
            async for record in self._records(method, left, spent):
                journal.append(record)
                if record.failure is None:
                    spent[record.cell] = record.num_tokens
                num_done += 1
                on_record(record, num_done, len(wanted))
                num_failed = num_failed + 1 if record.failure else 0
                if record.failure and num_failed == MAX_FAILURES_IN_A_ROW:
                    raise OperatorError(f"{num_failed} failures of ours in a row, the last: {record.failure.message}; {GO_ON}")
        return [record for record in latest(journal.records) if record.cell in set(wanted)]

    def _cells(self) -> list[Cell]:
        return [
            Cell(task=task.id, method=method.name, seed=seed)
            for method in self._methods
            for seed in (self._seeds if method.is_sampled else self._seeds[:1])
            for task in self._suite.tasks
        ]

    async def _records(self, method: Method, cells: Iterable[Cell], spent: dict[Cell, int]) -> AsyncIterator[Record]:
        """The records of some cells as they come, so many at a time."""
        tasks = {task.id: task for task in self._suite.tasks}
        waiting, running = iter(cells), set[asyncio.Task[Record]]()
        try:
            while True:
                while len(running) < self._parallel and (cell := next(waiting, None)) is not None:
                    budget = spent.get(Cell(task=cell.task, method=method.tokens_of, seed=cell.seed))
                    running.add(asyncio.create_task(self._record(tasks[cell.task], method, cell, budget)))
                if not running:
                    return
                ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for each in ended:
                    yield each.result()
        finally:
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _record(self, task: Task, method: Method, cell: Cell, budget: int | None) -> Record:
        if method.tokens_of and budget is None:
            missing = OurFailure(code="no_budget", message=f"what {method.tokens_of} spends on this task is not known")
            return Record(cell=cell, group=task.group, failure=missing)
        request = task.request(method, seed=cell.seed, model=self._model, max_tokens=budget)
        try:
            run = await self._closed(request, policy_of(method))
            if run.failure is not None:
                return _summary(run, task, cell, failure=run.failure)
            return await self._graded(run, task, method, cell)
        except AtlasError as error:  # of the judge, or of what solves: ours in any case
            return Record(cell=cell, group=task.group, failure=OurFailure(code=error.code, message=error.message))

    async def _closed(self, request: Request, policy: Policy) -> Run:
        run: Run | None = None
        async with aclosing(self._solve(request, policy)) as events:  # type: ignore[type-var]  # a generator, in all our solvers
            async for event in events:
                if isinstance(event, RunClosed):
                    run = event.run
        assert run is not None, "a solver ended without RunClosed"
        return run

    async def _graded(self, run: Run, task: Task, method: Method, cell: Cell) -> Record:
        """The hidden tests are run here and nowhere else: after the run was closed."""
        candidates = [candidate for attempt in run.attempts for candidate in attempt.candidates]
        judged = candidates if method.until == "exhaustive" else []
        codes = dict.fromkeys(code for code in [run.code, *(candidate.code for candidate in judged)] if code)
        grades = dict(zip(codes, await asyncio.gather(*(task.judge.grade(code, self._run) for code in codes)), strict=True))
        grade = grades.get(run.code)
        return msgspec.structs.replace(
            _summary(run, task, cell),
            passed=grade is not None and grade.passed,
            passed_stronger=grade is not None and grade.passed_stronger,
            samples=tuple(_sample(candidate, grades.get(candidate.code)) for candidate in judged),
        )


def _summary(run: Run, task: Task, cell: Cell, *, failure: OurFailure | None = None) -> Record:
    return Record(
        cell=cell,
        group=task.group,
        status=run.verdict.status,
        source=run.verdict.source,
        num_attempts=len(run.attempts),
        num_candidates=sum(len(attempt.candidates) for attempt in run.attempts),
        num_tokens=run.num_tokens,
        sandbox_s=run.sandbox_s,
        wall_s=run.wall_s,
        ended_by=run.ended_by,
        tier=run.verdict.tier or "",
        code=run.code,
        failure=failure,
    )


def _sample(candidate: Candidate, grade: Grade | None) -> Sample:
    """A candidate without code has failed, unless it was never finished."""
    is_unknown = grade is None and candidate.state in ("untested", "cancelled")
    return Sample(
        state=candidate.state,
        num_tokens=candidate.num_tokens,
        passed=None if is_unknown else grade is not None and grade.passed,
        passed_stronger=None if is_unknown else grade is not None and grade.passed_stronger,
    )
