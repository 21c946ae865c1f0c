"""The values of a benchmark: a task with its two kinds of tests, a way to solve it, and what came of one solving."""

from __future__ import annotations

from typing import Literal

from msgspec import field

from atlas.bench.judge import Judge
from atlas.types import CandidateState, OurFailure, Request, Route, RunLimits, Until, Value, VerdictStatus, VisibleTests

PolicyName = Literal["mixed", "one_repair"]


class Task(Value, frozen=True, kw_only=True):
    """One task. What the solver is given, `request` makes, and it makes it without the judge.

    Attributes:
        group: what the report breaks figures down by, such as a depth or a difficulty.
    """

    id: str
    task: str
    judge: Judge
    entry_point: str = ""
    language: str = "python"
    visible: VisibleTests = VisibleTests()
    files: dict[str, str] = field(default_factory=dict)
    limits: RunLimits = RunLimits()
    group: str = ""

    def request(self, method: Method, *, seed: int, model: str, max_tokens: int | None = None) -> Request:
        """What whoever solves the task is told."""
        return Request(
            task=self.task,
            entry_point=self.entry_point,
            language=self.language,
            tests=self.visible,
            files=self.files,
            limits=self.limits,
            model=model,
            seed=seed,
            until=method.until,
            route=method.route,
            max_tokens=max_tokens,
        )


class Suite(Value, frozen=True, kw_only=True):
    """Tasks under one name; `sha256` is of the file they were read from."""

    name: str
    sha256: str
    tasks: tuple[Task, ...]


class Method(Value, frozen=True, kw_only=True):
    """A way to solve a task: a row of the report.

    Attributes:
        title: for people.
        policy: what follows a failed attempt.
        tokens_of: its budget on a task is what that method has spent there; empty: no bound but its route.
        is_sampled: draws anew for each seed; a greedy one is run once.
    """

    name: str
    title: str
    route: Route
    until: Until = "first_pass"
    policy: PolicyName = "mixed"
    tokens_of: str = ""
    is_sampled: bool = True


class Sample(Value, frozen=True, kw_only=True):
    """One candidate, graded after the run was closed; None: it was never finished, which says nothing about it."""

    state: CandidateState
    num_tokens: int = 0
    passed: bool | None = None
    passed_stronger: bool | None = None


class Cell(Value, frozen=True, kw_only=True):
    """Which solving a record is of: no two records of a bench share one."""

    task: str
    method: str
    seed: int


class Record(Value, frozen=True, kw_only=True):
    """What one solving of one task showed. With `failure` it says nothing about the model, and is in no rate.

    Attributes:
        status: of the verdict that the solver gave, from visible or self-made tests alone.
        passed: the chosen answer, on the hidden tests.
        samples: all candidates, where all of them were made; empty otherwise.
        failure: what of ours went wrong, in solving or in grading.
    """

    cell: Cell
    group: str = ""
    status: VerdictStatus = "unchecked"
    source: str = "none"
    passed: bool = False
    passed_stronger: bool = False
    samples: tuple[Sample, ...] = ()
    num_attempts: int = 0
    num_candidates: int = 0
    num_tokens: int = 0
    sandbox_s: float = 0.0
    wall_s: float = 0.0
    ended_by: str = ""
    tier: str = ""
    code: str = ""
    failure: OurFailure | None = None

    @property
    def is_verified(self) -> bool:
        return self.status == "verified"


class BenchSettings(Value, frozen=True, kw_only=True):
    """All that decides what a bench measures: one that is gone on with has to have the same."""

    suite: str
    suite_sha256: str
    num_tasks: int
    model: str
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    prompts: str = ""
    version: str = ""
