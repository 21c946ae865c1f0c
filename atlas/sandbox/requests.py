"""A run as JSON asks for it, and what it showed as JSON tells it: one form for HTTP, MCP and the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from atlas.errors import BadRequest, Unsupported
from atlas.settings import SandboxSettings
from atlas.types import Case, CaseOutcome, Compare, Execution, LimitName, Outcome, Program, RunLimits, SandboxMode, Tier

MB = 1024 * 1024
LEAST_MEMORY_MB = 64  # an interpreter with pytest takes about forty
# What a mode makes use of beside code, language, files and limits; anything else is refused, so that nothing is passed over.
USED: dict[SandboxMode, frozenset[str]] = {
    "run": frozenset({"stdin"}),
    "pytest": frozenset({"test_code"}),
    "function": frozenset({"entry_point", "cases", "test_code"}),
    "stdin": frozenset({"cases"}),
    "lint": frozenset(),
}
SHOWN_CASES = 10
SHOWN_CHARS = 2000  # of each text, for people
Text = Annotated[str, Meta(description="Text; null and empty are nothing")]


class CaseRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One call of `entry_point`, or one run with this text on stdin.

    With `args` or `kwargs` as a string, they and `expected` hold Python literals as source text; otherwise they are JSON values.
    """

    args: Annotated[str | list[Any] | None, Meta(description="Source of a tuple or list, or a JSON array")] = None
    kwargs: Annotated[str | dict[str, Any] | None, Meta(description="Source of a dict, or a JSON object")] = None
    stdin: Annotated[str | None, Meta(description="In mode stdin: what the program reads; expected is what it has to write")] = (
        None
    )
    expected: Annotated[Any, Meta(description="The value, or its source text")] | UnsetType = UNSET
    compare: Annotated[
        Compare | None, Meta(description="exact: types too; json: as JSON sees it; approx: numbers within tolerance")
    ] = None
    tolerance: Annotated[float, Meta(ge=0)] | None = None

    def case(self, where: str) -> Case:
        """The same as one of our values; `where` names it in messages.

        Raises:
            BadRequest: it mixes two kinds, or lacks what is expected.
        """
        if self.expected is UNSET:
            raise BadRequest(f"{where}: a case needs `expected`", param="cases")
        if self.tolerance is not None and self.compare != "approx":
            raise BadRequest(f'{where}: `tolerance` goes with "compare": "approx"', param="cases")
        if self.stdin is not None:
            return self._of_input(where)
        return self._of_sources(where) if isinstance(self.args, str) or isinstance(self.kwargs, str) else self._of_values()

    def _of_input(self, where: str) -> Case:
        if self.args is not None or self.kwargs is not None:
            raise BadRequest(f"{where}: a case has `stdin`, or `args` and `kwargs`, not both", param="cases")
        if not isinstance(self.expected, str):
            raise BadRequest(f"{where}: what a program writes is text; `expected` has to be a string", param="cases")
        return self._case(stdin=self.stdin, expected=self.expected, compare=self.compare or "exact")

    def _of_sources(self, where: str) -> Case:
        given = {"args": self.args or "()", "kwargs": self.kwargs or "{}", "expected": self.expected}
        strange = [name for name, value in given.items() if not isinstance(value, str)]
        if strange:
            raise BadRequest(
                f"{where}: `{strange[0]}` is a JSON value beside source text; write all of them as source, or none", param="cases"
            )
        return self._case(**given, compare=self.compare or "exact")

    def _of_values(self) -> Case:
        return self._case(
            args=repr(self.args or []),
            kwargs=repr(self.kwargs or {}),
            expected=repr(self.expected),
            compare=self.compare or "json",
        )

    def _case(self, **fields: Any) -> Case:
        return Case(**fields) if self.tolerance is None else Case(**fields, tolerance=self.tolerance)


class RunRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Untrusted code, what is to be found out about it, and within which limits. An unknown field is an error."""

    code: str
    language: Annotated[str, Meta(description="python, or one of the languages whose tool this machine has")] = "python"
    mode: Annotated[SandboxMode | None, Meta(description="By default pytest where there is test_code, else run")] = None
    test_code: Annotated[Text | None, Meta(description="Tests, which import the code as `solution`, or a checker")] = None
    stdin: Annotated[Text | None, Meta(description="In mode run: what the program reads")] = None
    entry_point: Annotated[Text | None, Meta(description="In mode function: `name`, or `Class.method`")] = None
    cases: list[CaseRequest] | None = None
    files: Annotated[dict[str, str] | None, Meta(description="Further files by relative path, beside the code")] = None
    timeout: Annotated[float | None, Meta(description="Seconds of wall time, waiting for a free slot excluded")] = None
    memory_mb: Annotated[int | None, Meta(description="Of all processes of the run together")] = None
    fresh: Annotated[bool | None, Meta(description="A fresh interpreter instead of a fork of a warm one")] = None
    requirements: Annotated[Any, Meta(description="Not supported: refused unless null or empty.")] = None

    def program(self) -> Program:
        """What is to be run.

        Raises:
            BadRequest: a field is missing, or the mode makes no use of one that is there.
            Unsupported: packages are asked for.
        """
        if self.requirements:
            raise Unsupported(
                "requirements: nothing is installed for a run, which has no network; "
                "install the packages into the environment that the setting sandbox.python names",
                param="requirements",
            )
        mode = self.mode or ("pytest" if self.test_code else "run")
        self._check_used(mode)
        return Program(
            code=self.code,
            language=self.language,
            mode=mode,
            test_code=self.test_code or "",
            entry_point=self.entry_point or "",
            cases=tuple(case.case(f"cases[{number}]") for number, case in enumerate(self.cases or ())),
            stdin=self.stdin or "",
            files=self.files or {},
            fresh=bool(self.fresh),
        )

    def _check_used(self, mode: SandboxMode) -> None:
        for name in ("test_code", "stdin", "entry_point", "cases"):
            if getattr(self, name) and name not in USED[mode]:
                fitting = ", ".join(other for other, used in USED.items() if name in used)
                raise BadRequest(f"{name}: mode {mode} has no use for it; it goes with {fitting}", param=name)

    def limits(self, settings: SandboxSettings) -> RunLimits:
        """Within which limits: the settings' where nothing is asked for. Processor time may be as long as wall time.

        Raises:
            BadRequest: more is asked for than the settings allow, or next to nothing.
        """
        wall_s, memory_mb = settings.wall_s, settings.memory_mb
        if self.timeout is not None:
            wall_s = _within("timeout", self.timeout, 0.01, settings.max_wall_s, unit="s", setting="sandbox.max_wall_s")
        if self.memory_mb is not None:
            most = settings.max_memory_mb
            memory_mb = int(
                _within("memory_mb", self.memory_mb, LEAST_MEMORY_MB, most, unit="MB", setting="sandbox.max_memory_mb")
            )
        return RunLimits(wall_s=wall_s, cpu_s=wall_s, memory_bytes=memory_mb * MB)


def _within(name: str, value: float, least: float, most: float, *, unit: str, setting: str) -> float:
    if not least <= value <= most:
        raise BadRequest(f"{name}: {value:g} is not between {least:g} and {most:g} {unit} ({setting})", param=name)
    return value


class CaseEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """One test or case. Long texts are cut."""

    name: str
    outcome: CaseOutcome
    expected: str
    returned: str
    message: str
    wall_s: float


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What a run showed; whatever the code did wrong is in here.

    Attributes:
        success: tests ran, at least one, and all of them passed. Nothing else is a success.
        outcome: passed, completed (mode run or lint, exit 0), failed, error, or how it was ended.
        limit: the limit that was hit, if one was.
        sealed: tests and code were in separate boxes, and values were compared outside.
        tier: how it was isolated; none: not at all.
        queue_s: waiting for a free slot; wall_s begins after it.
        peak_bytes: largest resident memory seen.
        lint_score: pylint's, 0 to 10, in mode lint.
    """

    success: bool
    compile_success: bool
    tests_run: int
    tests_passed: int
    lint_score: float | None
    stdout: str
    stderr: str
    error_type: str | None
    error_message: str | None
    execution_time_ms: int
    outcome: Outcome
    limit: LimitName | None
    exit_code: int | None
    sealed: bool
    tier: Tier
    cases: list[CaseEvidence]
    queue_s: float
    wall_s: float
    cpu_s: float
    peak_bytes: int

    @classmethod
    def of(cls, execution: Execution) -> Evidence:
        return cls(
            success=execution.passed,
            compile_success=execution.compiled,
            tests_run=execution.tests_run,
            tests_passed=execution.tests_passed,
            lint_score=execution.lint_score,
            stdout=execution.stdout,
            stderr=execution.stderr,
            error_type=execution.error_type or None,
            error_message=execution.error_message or None,
            execution_time_ms=round(execution.wall_s * 1000),
            outcome=execution.outcome,
            limit=execution.limit,
            exit_code=execution.exit_code,
            sealed=execution.sealed,
            tier=execution.tier,
            cases=[msgspec.convert(case, CaseEvidence, from_attributes=True) for case in execution.cases],
            queue_s=execution.queue_s,
            wall_s=execution.wall_s,
            cpu_s=execution.cpu_s,
            peak_bytes=execution.peak_bytes,
        )

    def lines(self) -> Iterator[str]:
        """The verdict for people: one line, then what went wrong."""
        yield f"{'verified' if self.success else 'not verified'}: {self._finding()} ({self._circumstances()})"
        bad = [case for case in self.cases if case.outcome not in ("passed", "skipped")]
        for case in bad[:SHOWN_CASES]:
            yield from _case_lines(case)
        if len(bad) > SHOWN_CASES:
            yield f"  and {len(bad) - SHOWN_CASES} more"
        if not bad and self.error_message:
            yield from _indented(self.error_message)

    def _finding(self) -> str:
        hit = f"{self.outcome}, {self.limit} limit" if self.limit else self.outcome
        if self.lint_score is not None:
            return f"{hit}, lint score {self.lint_score:g} of 10; no test was run"
        if self.tests_run:
            counts = f"{self.tests_passed} of {self.tests_run} tests passed"
            return counts if self.success else f"{hit}, {counts}"
        what = self.error_type or (None if self.exit_code is None else f"exit code {self.exit_code}")
        return f"{hit}{f', {what}' if what else ''}; no test was run"

    def _circumstances(self) -> str:
        sealed = "" if not self.tests_run else "sealed, " if self.sealed else "not sealed, "
        isolation = "WITHOUT ISOLATION" if self.tier == "none" else self.tier
        return f"{sealed}{isolation}, {self.wall_s:.3g} s"


def _case_lines(case: CaseEvidence) -> Iterator[str]:
    comparison = f"expected {case.expected}, returned {case.returned}" if case.expected and case.outcome == "failed" else ""
    yield f"  {_printable(f'{case.name}: {comparison or case.outcome}')}"
    if case.message != comparison:
        yield from _indented(case.message)


def _indented(text: str) -> Iterator[str]:
    yield from (f"    {_printable(line)}" for line in text[:SHOWN_CHARS].splitlines())


def _printable(line: str) -> str:
    """Without what a terminal would obey: the code has a say in these texts."""
    return "".join(char if char.isprintable() or char == "\t" else ascii(char)[1:-1] for char in line[:SHOWN_CHARS])
