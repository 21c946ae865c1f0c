"""The frozen benchmark: 180 tasks, sixty each of depth 2, 3 and 4, half of them held-out compositions.

`benchmark.json` was written once, before the first training run, by `python -m nano.benchmark`. It lists programs, seeds and
hashes; a changed generator cannot change the benchmark without a test failing. Training excludes the programs by their hash.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from nano.tasks import Program, Task, discriminates, draw_program, make_task, parse_program

BENCHMARK_FILE = Path(__file__).parent / "benchmark.json"
DEPTHS = (2, 3, 4)
TASKS_PER_CELL = 30  # 3 depths x (in distribution, held out): the 95 % interval of a pass rate is about +-6 points
SEED = 20240  # chosen once


def load_benchmark() -> list[Task]:
    """The frozen tasks.

    Raises:
        ValueError: a task no longer has the hash it was frozen with.
    """
    tasks = []
    for entry in json.loads(BENCHMARK_FILE.read_text("utf-8"))["tasks"]:
        task = make_task(parse_program(entry["program"]), entry["seed"])
        if task.hash != entry["task_hash"] or task.program.hash != entry["program_hash"]:
            raise ValueError(f"benchmark task {entry['program']!r} changed: {task.hash}, frozen as {entry['task_hash']}")
        tasks.append(task)
    return tasks


def excluded_programs() -> frozenset[str]:
    """Hashes of the programs that no training record may contain."""
    return frozenset(entry["program_hash"] for entry in json.loads(BENCHMARK_FILE.read_text("utf-8"))["tasks"])


def draw_benchmark() -> list[tuple[Task, int]]:
    """Draw the split, with the seed of each task; only `freeze` calls this."""
    rng, drawn, seen = random.Random(SEED), [], set[str]()
    for depth in DEPTHS:
        for held_out in (False, True):
            cell: list[tuple[Task, int]] = []
            while len(cell) < TASKS_PER_CELL:
                program, seed = _draw(rng, depth, held_out=held_out), rng.randrange(10**6)
                task = make_task(program, seed)
                if program.hash not in seen and discriminates(task):
                    seen.add(program.hash)
                    cell.append((task, seed))
            drawn += cell
    return drawn


def freeze() -> None:
    """Write `benchmark.json`; refuses to replace it."""
    if BENCHMARK_FILE.exists():
        sys.exit(f"{BENCHMARK_FILE.name} is frozen; delete it only to start a new benchmark with a new name")
    entries = [
        {
            "program": task.program.spec,
            "seed": seed,
            "depth": task.depth,
            "held_out": task.held_out,
            "program_hash": task.program.hash,
            "task_hash": task.hash,
        }
        for task, seed in draw_benchmark()
    ]
    lines = ",\n".join("  " + json.dumps(entry) for entry in entries)
    BENCHMARK_FILE.write_text('{"version": 1, "tasks": [\n' + lines + "\n]}\n", "utf-8")


def _draw(rng: random.Random, depth: int, *, held_out: bool) -> Program:
    while (program := draw_program(rng, depth)).held_out != held_out:
        pass
    return program


if __name__ == "__main__":
    freeze()
