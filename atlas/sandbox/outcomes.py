"""How a box ended, as an Execution says it. What the code inside reported is believed only where it makes the result worse."""

from __future__ import annotations

import errno
import math
import signal
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from atlas.sandbox.boxes import BoxResult
from atlas.types import CaseOutcome, CaseResult, Execution, LimitName, Outcome, Tier

TEXT_LIMIT_CHARS = 4000
TYPE_LIMIT_CHARS = 200
_ENDINGS: dict[str, tuple[Outcome, LimitName | None]] = {
    "wall": ("timeout", "wall"),
    "cpu": ("timeout", "cpu"),
    "memory": ("memory_limit", "memory"),
    "output": ("output_limit", "output"),
    "killed": ("killed", None),
}
_OF_CASE: dict[Outcome, CaseOutcome] = {"timeout": "timeout"}
NO_RESULT = "NoResult"  # error_type where the process ended without having said what it was asked
WRONG = "WrongAnswer"  # error_type where values or output are not what was expected


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An exception as the box described it (inside/faults.py)."""

    type: str
    message: str = ""
    errno: int | None = None
    line: int | None = None
    trace: str = ""

    @property
    def text(self) -> str:
        """For people: the traceback, or what there is."""
        return trim(self.trace or f"{self.type}: {self.message}")

    @property
    def limit(self) -> LimitName | None:
        """The limit that the exception is the sign of."""
        if self.type == "MemoryError":
            return "memory"
        if self.errno in (errno.EFBIG, errno.ENOSPC):
            return "file_size"
        can_not_start = self.type == "RuntimeError" and self.message == "can't start new thread"
        return "processes" if can_not_start or (self.type == "BlockingIOError" and self.errno == errno.EAGAIN) else None


class Hit(NamedTuple):
    """A limit, and the outcome it is."""

    outcome: Outcome
    limit: LimitName | None


def ended_early(result: BoxResult) -> Hit | None:
    """The limit that ended a box, if one did."""
    if result.ending in _ENDINGS:
        return Hit(*_ENDINGS[result.ending])
    return Hit("killed", None) if result.exit_code == -signal.SIGKILL else None


def signal_name(result: BoxResult) -> str:
    """Of the signal that a program died of."""
    if result.exit_code is None or result.exit_code >= 0:
        return ""
    try:
        return signal.Signals(-result.exit_code).name
    except ValueError:
        return f"signal {-result.exit_code}"


def parse_fault(value: Any) -> Fault | None:
    """A fault, if this is one."""
    try:
        return msgspec.convert(value, Fault)
    except msgspec.ValidationError:
        return None


def seconds_of(value: Any) -> float:
    """A duration that a box claims."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) and value >= 0 else 0.0


def trim(text: str) -> str:
    """Head and tail of a long text."""
    if len(text) <= TEXT_LIMIT_CHARS:
        return text
    half = TEXT_LIMIT_CHARS // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


def decode(output: bytes) -> str:
    return output.decode("utf-8", "replace")


def clean(done: Execution) -> Execution:
    """The same with texts that can be sent on: a box may report half a surrogate pair, and names without end."""
    return replace(
        done,
        cases=tuple(map(_sendable_case, done.cases)),
        error_type=_sendable(done.error_type)[:TYPE_LIMIT_CHARS],
        error_message=trim(_sendable(done.error_message)),
    )


def _sendable_case(case: CaseResult) -> CaseResult:
    if case.name.isascii() and case.message.isascii():
        return case
    return replace(case, name=_sendable(case.name), message=_sendable(case.message))


def _sendable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def case_outcome(outcome: Outcome) -> CaseOutcome:
    """Of the case in which a run ended so."""
    return _OF_CASE.get(outcome, "error")


def execution(tier: Tier, *results: BoxResult, outcome: Outcome, **fields: Any) -> Execution:
    """An Execution of these boxes: streams and exit code of the first, time and memory of all."""
    first = results[0]
    cases: tuple[CaseResult, ...] = fields.get("cases", ())
    facts: dict[str, Any] = {
        "exit_code": first.exit_code,
        "stdout": decode(first.stdout),
        "stderr": decode(first.stderr),
        "tests_run": sum(case.outcome != "skipped" for case in cases),
        "tests_passed": sum(case.outcome == "passed" for case in cases),
        "wall_s": max(result.wall_s for result in results),
        "cpu_s": sum(result.cpu_s for result in results),
        "peak_bytes": sum(result.peak_bytes for result in results),
    }
    return Execution(outcome=outcome, tier=tier, **(facts | fields))


def failed_early(tier: Tier, *results: BoxResult, fault: Fault, **fields: Any) -> Execution:
    """Nothing could be tested: the code does not compile, or its import fails."""
    limit = fault.limit
    return execution(
        tier,
        *results,
        outcome="memory_limit" if limit == "memory" else "error",
        limit=limit,
        error_type=fault.type,
        error_message=fault.text,
        **fields,
    )


def not_loaded(result: BoxResult, tier: Tier, *others: BoxResult) -> Execution | None:
    """What there is to say if the candidate's module could not be had."""
    frame = result.frames[0] if result.frames and isinstance(result.frames[0], dict) else {}
    if frame == {"loaded": True}:
        return None
    if fault := parse_fault(frame.get("compile")):
        return failed_early(tier, result, *others, fault=fault, compiled=False)
    if fault := parse_fault(frame.get("fault")):
        return failed_early(tier, result, *others, fault=fault)
    return no_result(tier, result, *others, message="the process ended while the code was imported")


def no_result(tier: Tier, *results: BoxResult, message: str, **fields: Any) -> Execution:
    """The first box ended without having said what it was asked."""
    if hit := ended_early(results[0]):
        return execution(tier, *results, outcome=hit.outcome, limit=hit.limit, **fields)
    how = signal_name(results[0]) or f"exit code {results[0].exit_code}"
    return execution(tier, *results, outcome="error", error_type=NO_RESULT, error_message=f"{message} ({how})", **fields)


def tampered(tier: Tier, *results: BoxResult, reason: str, **fields: Any) -> Execution:
    """The code interfered with its own judging."""
    return execution(tier, *results, outcome="tampered", error_type="Tampered", error_message=reason, **fields)
