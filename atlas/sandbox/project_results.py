"""What came out of a box in which a project's tests ran, as a ProjectRun."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from atlas.sandbox.boxes import BoxResult
from atlas.sandbox.outcomes import decode, ended_early, seconds_of, trim
from atlas.types import CaseOutcome, CaseResult, LimitName, Outcome, ProjectRun

OUTPUT_CHARS = 16_000
NO_TESTS, USAGE_ERROR, INTERNAL_ERROR, INTERRUPTED = 5, 4, 3, 2  # exit statuses of pytest
TEST_OUTCOMES = ("passed", "failed", "error", "skipped")


class Word(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One frame of inside/project_run.py; each sets some of these."""

    selected: tuple[str, ...] = ()
    started: str | None = None
    test: str | None = None
    outcome: CaseOutcome = "error"
    seconds: float = 0.0
    message: str = ""
    uncollected: str | None = None
    absent: str | None = None
    finished: int | None = None
    is_reporting: bool = True
    plugins: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()
    signs: tuple[str, ...] = ()
    ended: int | None = None
    tampering: tuple[str, ...] = ()
    is_forged: bool = False
    failure: str = ""


class Heard(NamedTuple):
    """All words of a run, in order, put together."""

    cases: dict[str, CaseResult]
    uncollected: dict[str, CaseResult]
    selected: set[str]
    started: str  # the test begun last
    finish: Word | None
    end: Word | None
    absent: str
    signs: list[str]


def conclude(result: BoxResult, *, hears_tests: bool) -> ProjectRun:
    """The run, judged by itself. `hears_tests`: it was pytest's, with our reporter."""
    heard = hear(result)
    problem = _problem(result, heard, hears_tests=hears_tests)
    cases = tuple(_with_unfinished(heard).values())
    outcome, limit, message = problem or _judge(heard, cases, hears_tests=hears_tests)
    return ProjectRun(
        outcome=outcome,
        limit=limit,
        exit_code=heard.end.ended if heard.end else result.exit_code,
        cases=cases,
        uncollected=tuple(heard.uncollected.values()),
        signs=tuple(heard.signs),
        plugins=heard.finish.plugins if heard.finish else (),
        helpers=heard.finish.helpers if heard.finish else (),
        message=message,
        stdout=decode(result.stdout)[-OUTPUT_CHARS:],
        stderr=decode(result.stderr)[-OUTPUT_CHARS:],
        wall_s=result.wall_s,
        cpu_s=result.cpu_s,
        peak_bytes=result.peak_bytes,
    )


def hear(result: BoxResult) -> Heard:
    """Put the words together; what is not one is a sign of interference."""
    heard = Heard({}, {}, set(), "", None, None, "", [])
    for frame in result.frames:
        word = _word(frame)
        if word is None or heard.end is not None:
            heard.signs.append("the report holds what no reporter wrote")
            break
        heard = _add(heard, word)
    if result.is_damaged and heard.end is not None:
        heard.signs.append("the report is damaged")
    return heard


def _word(frame: Any) -> Word | None:
    try:
        return msgspec.convert(_clean(frame), Word)
    except msgspec.ValidationError:
        return None


def _clean(value: Any) -> Any:
    """Half surrogates, which JSON can say and no text can hold, become question marks."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    return value


def _add(heard: Heard, word: Word) -> Heard:
    heard.selected.update(word.selected)
    heard.signs.extend((*word.signs, *word.tampering))
    if word.is_forged:
        heard.signs.append("somebody else wrote to the reporter's descriptor")
    if word.test is not None:
        _add_case(heard.cases, word.test, word)
    if word.uncollected is not None:
        heard.uncollected[word.uncollected] = CaseResult(name=word.uncollected, outcome="error", message=trim(word.message))
    if word.finished is not None and heard.finish is not None:
        heard.signs.append("the tests ended twice")
    return heard._replace(
        started=word.started or heard.started,
        finish=word if word.finished is not None else heard.finish,
        end=word if word.ended is not None else heard.end,
        absent=word.absent or heard.absent,
    )


def _add_case(cases: dict[str, CaseResult], name: str, word: Word) -> None:
    """Of two results of one test the worse one stands."""
    known = cases.get(name)
    if known is None or known.outcome == "passed":
        cases[name] = CaseResult(name=name, outcome=word.outcome, message=trim(word.message), wall_s=seconds_of(word.seconds))


def _with_unfinished(heard: Heard) -> dict[str, CaseResult]:
    """Tests that were selected and never finished are errors."""
    cases = dict(heard.cases)
    for name in sorted(heard.selected - cases.keys()):
        began = "it did not finish" if name == heard.started else "it was not run"
        cases[name] = CaseResult(name=name, outcome="error", message=f"{began}: the run broke off")
    return cases


Problem = tuple[Outcome, LimitName | None, str]


def _problem(result: BoxResult, heard: Heard, *, hears_tests: bool) -> Problem | None:
    """Why the run says nothing about tests that did not finish; None if it came to its end."""
    during = f" during {heard.started}" if heard.started and heard.started not in heard.cases else ""
    if hit := ended_early(result):
        name = {"timeout": "took too long", "memory_limit": "used too much memory", "output_limit": "wrote too much"}
        return hit.outcome, hit.limit, f"the tests {name.get(hit.outcome, 'were ended by the machine')}{during}"
    if heard.end is None:
        return "error", None, f"the process that watches the tests was ended{during}"
    if heard.end.failure:
        return "error", None, heard.end.failure
    if heard.absent:
        return "error", None, f"the project's interpreter has no pytest: {heard.absent}"
    if hears_tests and heard.finish is None:
        return "error", None, f"the tests' process ended before pytest had finished ({_how(heard.end.ended)}){during}"
    return None


def _how(status: int | None) -> str:
    if status is None or status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _judge(heard: Heard, cases: Sequence[CaseResult], *, hears_tests: bool) -> Problem:
    """The outcome of a run that came to its end."""
    assert heard.end is not None
    if not hears_tests:
        outcome: Outcome = "completed" if heard.end.ended == 0 else "failed"
        return outcome, None, "" if heard.end.ended == 0 else f"the command ended with {_how(heard.end.ended)}"
    assert heard.finish is not None
    if message := _contradiction(heard, heard.finish, heard.end):
        return "tampered", None, message
    num_run = sum(case.outcome != "skipped" for case in cases)
    if num_run == 0:
        return "error", None, _why_nothing_ran(heard, len(cases))
    bad = [case.name for case in cases if case.outcome not in ("passed", "skipped")]
    if bad or heard.uncollected:
        return "failed", None, name_some("did not pass", [*bad, *heard.uncollected])
    if heard.finish.finished != 0:
        return "failed", None, f"every test passed, but pytest ended with status {heard.finish.finished}; see its output"
    return "passed", None, ""


def _contradiction(heard: Heard, finish: Word, end: Word) -> str:
    """What cannot be if nobody interfered."""
    if not finish.is_reporting:
        return "the reporter was taken out of pytest"
    if finish.finished != end.ended:
        return f"pytest finished with status {finish.finished}, but its process with {_how(end.ended)}"
    all_passed = not heard.uncollected and all(case.outcome in ("passed", "skipped") for case in heard.cases.values())
    if finish.finished == 0 and not all_passed:
        return "pytest says that all passed, but tests reported failures"
    return ""


def _why_nothing_ran(heard: Heard, num_skipped: int) -> str:
    if heard.uncollected:
        return name_some("could not be collected", list(heard.uncollected))
    if heard.finish and heard.finish.finished in (USAGE_ERROR, INTERNAL_ERROR, INTERRUPTED):
        return f"pytest could not begin (exit status {heard.finish.finished}); see its output"
    return f"all {num_skipped} tests were skipped" if num_skipped else "the command selects no test"


def name_some(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{what}: {shown}"
