"""Whether an attack was contained, from what was seen of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tests.sandbox.escapes.escape import Escape, Outcome, Seen

HELLO = "exit hello 42"
MAX_BUSY_S = 0.5  # of processor time, whatever else the machine does
MAX_LAG_S = 1.5  # beside other work; what an attack cost before it was bounded was up to four
LATE_S = 6.0  # beyond its limit of time, on a machine with twenty times as much to do as it has processors


def faults(escape: Escape, outcome: Outcome, canary: str, *, is_bare: bool = False) -> list[str]:
    """What is not as it must be; nothing, if the attack was contained.

    `is_bare`: in a tier that gives a program so little (no /proc, no sockets) that many an attack does not come to its end, or
    meets another error than elsewhere.
    """
    return [*_faults(escape, outcome, canary, is_bare=is_bare)]


def _faults(escape: Escape, outcome: Outcome, canary: str, *, is_bare: bool) -> Iterator[str]:
    if outcome.failure:
        yield f"reported as a failure of ours: {outcome.failure}"
        return
    assert outcome.main is not None
    if not is_bare:
        yield from _main_faults(escape, outcome.main)
        yield from _others_faults(outcome)
    yield from _pool_faults(escape, outcome)
    for box in filter(None, (outcome.main, outcome.along, outcome.then)):
        yield from _leaks(box, canary, hides=() if is_bare else escape.hides)


def _others_faults(outcome: Outcome) -> Iterator[str]:
    for box in filter(None, (outcome.along, outcome.then)):
        if not box.stdout.endswith(b"done\n"):
            yield f"the other program did not come to its end: {box.ending}, {box.everything[-500:]}"


def _pool_faults(escape: Escape, outcome: Outcome) -> Iterator[str]:
    if outcome.hello != HELLO:
        yield f"the pool is not well afterwards: {outcome.hello!r}"
    if outcome.meanwhile:
        yield f"while it ran the host could not: {outcome.meanwhile}"
    if escape.alone and outcome.lag_s > MAX_LAG_S:
        yield f"it held the pool up for {outcome.lag_s:.1f} s"
    if escape.alone and outcome.busy_s > MAX_BUSY_S:
        yield f"it kept the pool busy for {outcome.busy_s:.1f} s"
    if outcome.left:
        yield f"left behind: {outcome.left}"
    if outcome.descriptors:
        yield f"{outcome.descriptors} descriptors of the pool are lost"


def _main_faults(escape: Escape, box: Seen) -> Iterator[str]:
    if box.ending not in escape.endings:
        yield f"ended by {box.ending}, not {' or '.join(escape.endings)}"
    if box.ending == "exit" and escape.exit_code is not None and box.exit_code != escape.exit_code:
        yield f"exit code {box.exit_code}, not {escape.exit_code}"
    if not box.stdout.startswith(b"begun\n"):
        yield "it did not begin"
    if escape.finishes and not box.stdout.endswith(b"done\n"):
        yield f"it did not come to its end: {box.everything[-500:]}"
    if not re.search(escape.shows, box.everything, re.MULTILINE):
        yield f"it did not show {escape.shows!r}"
    if box.wall_s > escape.limits.get("wall_s", 20.0) + LATE_S:
        yield f"ended {box.wall_s:.1f} s after it began"


def _leaks(box: Seen, canary: str, *, hides: Sequence[str]) -> Iterator[str]:
    everything = box.everything
    if canary in everything:
        yield "a secret of the host got out"
    for pattern in ("^GOT .*", *hides):
        if found := re.search(pattern, everything, re.MULTILINE):
            yield f"it did what it must not: {found[0][:300]}"
