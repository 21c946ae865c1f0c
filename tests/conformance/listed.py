"""Which tests of a suite are not expected to pass, why, and what a run of the suite therefore shows."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

# weights: asserts words, token counts or the tokenizer of a model that is not here
# own: a route, a flag or a word of the other server that OpenAI's API does not have
# differs: ATLAS answers otherwise, on purpose
# later: not built yet
Kind = Literal["weights", "own", "differs", "later"]


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tests of one file that are listed for one reason.

    Attributes:
        tests: `function`, `Class::function`, or either with its `[parameters]`; without them all are meant.
    """

    suite: str
    file: str
    kind: Kind
    reason: str
    tests: list[str]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    listed: list[Entry]


class Outcome(NamedTuple):
    """What became of a test: passed, failed or skipped, and the first line of why."""

    outcome: str
    why: str = ""


class Judged(NamedTuple):
    """A run of one file.

    Attributes:
        passed: tests that passed and are not listed.
        listed: tests that did not pass and are listed, with their entry.
        faults: sentences on what is not as the list says; empty if all is well.
    """

    passed: list[str]
    listed: dict[str, Entry]
    faults: list[str]

    def count(self, *kinds: Kind) -> int:
        return sum(entry.kind in kinds for entry in self.listed.values())


def read_listed(path: Path) -> list[Entry]:
    return msgspec.convert(tomllib.loads(path.read_text()), _File).listed


def judge(outcomes: Mapping[str, Outcome], entries: Sequence[Entry]) -> Judged:
    """Compare a run of one file with the entries about that file."""
    meant = {name: _entries_of(name, entries) for name in outcomes}
    passed = [name for name, found in outcomes.items() if found.outcome == "passed" and not meant[name]]
    listed = {name: meant[name][0] for name, found in outcomes.items() if found.outcome != "passed" and meant[name]}
    faults = [fault for name, found in outcomes.items() if (fault := _fault(name, found, meant[name]))]
    return Judged(passed, listed, [*faults, *_gone(outcomes, entries)])


def _fault(name: str, found: Outcome, meant: Sequence[Entry]) -> str:
    if len(meant) > 1:
        return f"{name} is listed {len(meant)} times"
    if found.outcome == "passed":
        return f"{name} passes, but is listed ({meant[0].kind}); take it off the list" if meant else ""
    return "" if meant else f"{name} {found.outcome}: {found.why}"


def _gone(outcomes: Mapping[str, Outcome], entries: Sequence[Entry]) -> list[str]:
    names = {alias for name in outcomes for alias in _aliases(name)}
    return [f"{test} is listed, but there is no such test" for entry in entries for test in entry.tests if test not in names]


def _entries_of(name: str, entries: Sequence[Entry]) -> list[Entry]:
    aliases = _aliases(name)
    return [entry for entry in entries if not aliases.isdisjoint(entry.tests)]


def _aliases(name: str) -> set[str]:
    """The ways to name a test: with its class and parameters, or without either."""
    head, bracket, parameters = name.partition("[")
    function = head.rpartition("::")[2]
    return {name, head, function, function + bracket + parameters}
