"""`make conformance`: run the suites, print what passed and why the rest is not expected to, exit 1 if that is not so.

python -m tests.conformance [WORD ...]      only the files whose "suite/file" contains one of the words
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.conformance.listed import Judged, judge, read_listed
from tests.conformance.suites import SUITES, Suite

LISTED = Path(__file__).with_name("listed.toml")
# Of these files, what OpenAI's API has and weights do not decide has to pass to this share.
HELD_FILES = ("test_chat_completion.py", "test_completion.py", "test_tokenize.py")
HELD_SHARE = 0.9


class Row(NamedTuple):
    suite: str
    file: str
    judged: Judged
    wall_s: float


def main(words: Sequence[str]) -> int:
    rows = []
    for suite, file in _chosen(words):
        row = _run(suite, file)
        rows.append(row)
        print(f"{suite.name}/{file}: {len(row.judged.passed)} passed, {row.wall_s:.0f} s", file=sys.stderr)
        for fault in row.judged.faults:
            print(f"  {fault}", file=sys.stderr)
    print(table(rows))
    print(reasons(rows))
    share = held_share(rows)
    print(f"of llama-server's chat, completion and tokenize tests that can be held against ATLAS, {share:.1%} pass")
    faults = [fault for row in rows for fault in row.judged.faults]
    return 1 if faults or share < HELD_SHARE else 0


def _chosen(words: Sequence[str]) -> Iterator[tuple[Suite, str]]:
    for suite in SUITES:
        for file in suite.files:
            if not words or any(word in f"{suite.name}/{file}" for word in words):
                yield suite, file


def _run(suite: Suite, file: str) -> Row:
    start_s = time.monotonic()
    entries = [entry for entry in read_listed(LISTED) if (entry.suite, entry.file) == (suite.name, file)]
    return Row(suite.name, file, judge(suite.run(file, suite.files[file]), entries), time.monotonic() - start_s)


def table(rows: Sequence[Row]) -> str:
    """Passed and listed tests per file, as docs/conformance.md has them."""
    lines = ["| suite | file | passed | differs | later | own | weights | faults |", "|---|---|--:|--:|--:|--:|--:|--:|"]
    for suite, file, judged, _ in rows:
        counts = [judged.count("differs"), judged.count("later"), judged.count("own"), judged.count("weights")]
        numbers = [len(judged.passed), *counts, len(judged.faults)]
        lines.append(f"| {suite} | `{file}` | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


def reasons(rows: Sequence[Row]) -> str:
    """Why tests are not expected to pass, and which."""
    lines = []
    for suite, file, judged, _ in rows:
        found = dict.fromkeys((entry.kind, entry.reason, tuple(entry.tests)) for entry in judged.listed.values())
        lines += [f"{suite}/{file}: {kind}: {reason}\n  {', '.join(tests)}" for kind, reason, tests in found]
    return "\n".join(lines)


def held_share(rows: Sequence[Row]) -> float:
    """Share of passed tests among those of HELD_FILES that neither weights nor llama-server's own ways decide."""
    held = [row.judged for row in rows if row.file in HELD_FILES and row.suite == "llama-server"]
    passed = sum(len(judged.passed) for judged in held)
    missed = sum(judged.count("differs", "later") + len(judged.faults) for judged in held)
    return passed / (passed + missed) if passed + missed else 1.0  # none of these files was run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
