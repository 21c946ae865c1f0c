"""Freeze the benchmark as the suite that ships with the server: `python -m nano.suite` writes atlas/bench/nano.jsonl.gz.

Three visible examples, twelve hidden tests, and forty stronger ones: the reference on generated inputs, with the smallest and the
longest that a source can have, none of which is among the others. The file is the same at every writing; a test compares them.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nano.benchmark import load_benchmark
from nano.primitives import SOURCES
from nano.tasks import Task, call_reference, draw_argument

SUITE_FILE = Path(__file__).parents[1] / "atlas/bench/nano.jsonl.gz"
NUM_STRONGER = 40
EDGES: dict[str, tuple[Any, ...]] = {
    "n": (1, 2, 9, 10, 97, 99, 100),
    "s": ("a", "abc", "a b c d e f g", "wwwwwwwww", "rada rada rada"),
    "m": ([[0]], [[1, 2, 3]], [[-1], [-2], [-3]], [[0, 0], [0, 0]], [[5], [5], [5], [5], [5], [5], [5], [5]]),
    "xs": ([], [0], [-1], [7, 7, 7], [3, 2, 1], list(range(-10, 11)), [0, 0, 0, 0], list(range(20, 0, -1))),
}


def suite_bytes() -> bytes:
    """The file, whole; time and name are left out of its header."""
    lines = "".join(json.dumps(_line(number, task)) + "\n" for number, task in enumerate(load_benchmark()))
    return gzip.compress(lines.encode(), compresslevel=9, mtime=0)


def _line(number: int, task: Task) -> dict[str, Any]:
    return {
        "id": f"nano/{number:03d}",
        "task": task.prompt,
        "entry_point": task.entry_point,
        "group": f"depth {task.depth}",
        "visible": {"code": "\n".join(f"assert {example.call} == {example.result}" for example in task.visible)},
        "hidden": {"cases": [_case(argument, result) for argument, result in task.hidden]},
        "stronger": {"cases": [_case(argument, result) for argument, result in stronger(task)]},
    }


def _case(argument: str, result: str) -> dict[str, str]:
    return {"args": f"({argument},)", "expected": result}


def stronger(task: Task) -> Iterator[tuple[str, str]]:
    """Edges first, then random arguments; where the reference itself has no result, none is asked for."""
    rng = random.Random(f"stronger/{task.hash}")
    seen = {argument for argument, _ in task.hidden} | {_argument_of(example.call, task) for example in task.visible}
    edges = iter(EDGES[SOURCES[task.program.source].argument])
    found = 0
    while found < NUM_STRONGER:
        argument = next(edges, None)
        argument = draw_argument(task.program, rng) if argument is None else argument
        if repr(argument) in seen:
            continue
        seen.add(repr(argument))
        try:
            result = call_reference(task.program, argument)
        except (ArithmeticError, LookupError, ValueError):
            continue
        found += 1
        yield repr(argument), repr(result)


def _argument_of(call: str, task: Task) -> str:
    return call.removeprefix(f"{task.entry_point}(").removesuffix(")")


if __name__ == "__main__":
    SUITE_FILE.write_bytes(suite_bytes())
