"""What a box reported on its tests, read as untrusted text and turned into results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from atlas.sandbox import outcomes
from atlas.sandbox.boxes import BoxResult
from atlas.sandbox.outcomes import Fault
from atlas.types import CaseOutcome, CaseResult

PHASES = ["setup", "call", "teardown"]
NAME_LIMIT_CHARS = 400


class Forged(ValueError):
    """This report was not written by a runner of ours, or not by it alone."""


class Phase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One phase of one test, as pytest has them; a checker's tests have `call` only."""

    test: str
    when: str
    outcome: str
    text: str = ""
    type: str = ""
    seconds: float = 0.0


class End(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last word of a runner.

    Attributes:
        end: pytest's exit status; 0 of a checker.
        lost: why the code's box did not answer any more.
        is_forged: it answered what is no answer.
        tampering: signs that the code interfered (inside/tampering.py).
    """

    end: int
    lost: str = ""
    is_forged: bool = False
    tampering: tuple[str, ...] = ()


class Broken(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tests themselves cannot be imported."""

    broken: str
    fault: Fault


class Transcript(msgspec.Struct, kw_only=True):
    """All frames of a box, by what they say."""

    phases: list[Phase]
    collected: list[str] = []
    broken: Broken | None = None
    not_compiled: Fault | None = None
    not_loaded: Fault | None = None
    end: End | None = None

    def cases(self, *, is_pytest: bool) -> list[CaseResult]:
        """One result for each test that was collected or reported."""
        if not is_pytest:
            return [_case(phase.test, [phase], ["call"]) for phase in self.phases]
        by_test: dict[str, list[Phase]] = {test: [] for test in self.collected}
        for phase in self.phases:
            by_test.setdefault(phase.test, []).append(phase)
        return [_case(test, phases, PHASES) for test, phases in by_test.items()]

    def first_type(self) -> str:
        """Exception type of the first phase that failed."""
        return next((phase.type for phase in self.phases if phase.outcome != "passed" and phase.type), outcomes.WRONG)


def read(result: BoxResult, nonce: str = "") -> Transcript:
    """The frames of a box.

    Args:
        result: of the box.
        nonce: that every frame must bear, if there is one.

    Raises:
        Forged: a frame is none of ours, or there is something after the last.
    """
    if result.is_damaged and result.ending == "exit":
        raise Forged("the report holds bytes that are no frames")
    transcript = Transcript(phases=[])
    for frame in result.frames:
        if transcript.end is not None:
            raise Forged("the report goes on after its end")
        try:
            _add(transcript, _signed(frame, nonce))
        except msgspec.ValidationError as error:
            raise Forged(f"the report holds what no runner writes: {error}") from None
    return transcript


def _signed(frame: Any, nonce: str) -> dict[str, Any]:
    if type(frame) is not dict or (nonce and frame.pop("nonce", "") != nonce):
        raise Forged("the report holds frames that the runner did not write")
    return frame


def _add(transcript: Transcript, frame: dict[str, Any]) -> None:
    if "test" in frame:
        transcript.phases.append(msgspec.convert(frame, Phase))
    elif "collected" in frame:
        transcript.collected += msgspec.convert(frame["collected"], list[str])
    elif "broken" in frame:
        transcript.broken = msgspec.convert(frame, Broken)
    elif "end" in frame:
        transcript.end = msgspec.convert(frame, End)
    elif "compile" in frame:
        transcript.not_compiled = msgspec.convert(frame["compile"], Fault)
    elif "fault" in frame:
        transcript.not_loaded = msgspec.convert(frame["fault"], Fault)
    elif frame not in ({"absent": True}, {"loaded": True}):
        raise Forged("the report holds a frame without a meaning")


def _case(test: str, phases: list[Phase], wanted: list[str]) -> CaseResult:
    bad = next((phase for phase in phases if phase.outcome != "passed"), None)
    outcome: CaseOutcome = "passed" if bad is None and [phase.when for phase in phases] == wanted else "error"
    if bad is not None:
        outcome = _outcome_of(bad)
    return CaseResult(
        name=test[:NAME_LIMIT_CHARS],
        outcome=outcome,
        message=outcomes.trim(bad.text) if bad else "",
        wall_s=sum(outcomes.seconds_of(phase.seconds) for phase in phases),
    )


def _outcome_of(bad: Phase) -> CaseOutcome:
    if bad.outcome == "skipped":
        return "skipped"
    return "failed" if bad.when == "call" else "error"


def missing(expected: list[str], cases: list[CaseResult]) -> Iterator[str]:
    """Of the test functions in a file those that nothing was reported on."""
    reported = {case.name.partition("::")[2].partition("[")[0] for case in cases}
    yield from (name for name in expected if name not in reported)
