"""Measure the shipped model on the frozen benchmark: `python -m nano.evaluate` reproduces the figures of the model card.

Each task is asked once greedily and, for each sampling seed, 20 times at temperature 0.8, in a bare user message and the model
file's own template. pass@k is the unbiased estimator of https://arxiv.org/abs/2107.03374 over all samples of a task; intervals
are 95 % bootstrap intervals over tasks, because samples of one task are not independent.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from atlas.ralph import extract_code, prompt_hash, solve
from nano.benchmark import DEPTHS, load_benchmark
from nano.chat import render
from nano.export import GGUF_NAME, MODEL_DIR
from nano.judge import Verdict, judge
from nano.tasks import Task

TEMPERATURE = 0.8
NUM_CANDIDATES = 20
NUM_RESAMPLES = 4_000
SEEDS_PER_TASK = 1_000_003  # a prime: no two (sampling seed, task) pairs share a generator

Generate = Callable[..., list[str]]


class Result(NamedTuple):
    """Verdicts of one task: the greedy answer and, per sampling seed, each sampled answer."""

    task: Task
    greedy: Verdict
    sampled: tuple[tuple[Verdict, ...], ...]

    @property
    def num_samples(self) -> int:
        return sum(map(len, self.sampled))

    @property
    def num_passed(self) -> int:
        return sum(verdict.passed for verdicts in self.sampled for verdict in verdicts)


def main() -> None:
    arguments = _parse()
    report = evaluate_file(arguments.model, num_seeds=arguments.seeds, threads=arguments.threads)
    print(json.dumps(report, indent=1) if arguments.json else as_table(report))


def evaluate_file(path: Path, *, num_seeds: int, threads: int = 1) -> dict[str, Any]:
    """The whole report of one GGUF."""
    from nano.generate import Generator  # llama.cpp is loaded only to generate

    generator = Generator(path, threads=threads)
    started = time.monotonic()
    results = evaluate(generator.generate, load_benchmark(), num_seeds=num_seeds)
    generator.close()
    return {"prompt_hash": prompt_hash(), **summarise(results), "wall_s": round(time.monotonic() - started)}


def evaluate(generate: Generate, tasks: Sequence[Task], *, num_seeds: int) -> list[Result]:
    results = []
    for index, task in enumerate(tasks):
        results.append(_evaluate_task(generate, task, index, num_seeds))
        if sys.stderr.isatty():
            print(f"\r{index + 1}/{len(tasks)} tasks", end="", file=sys.stderr, flush=True)
    return results


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Probability that at least one of k samples drawn without replacement passes."""
    if num_samples - num_passed < k:
        return 1.0
    return 1.0 - math.comb(num_samples - num_passed, k) / math.comb(num_samples, k)


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """All figures, as rates in 0..1 with intervals."""
    cells: dict[str, Sequence[Result]] = {"all": results}
    cells["in distribution"] = [result for result in results if not result.task.held_out]
    cells["held out"] = [result for result in results if result.task.held_out]
    for depth in DEPTHS:
        cells[f"depth {depth}"] = [result for result in results if result.task.depth == depth]
    outcomes = Counter(verdict.outcome for result in results for verdicts in result.sampled for verdict in verdicts)
    return {
        "tasks": len(results),
        "temperature": TEMPERATURE,
        "pass@1 by sampling seed": _by_seed(results),
        "cells": {name: _cell(cell) for name, cell in cells.items() if cell},
        "outcomes": dict(sorted(outcomes.items())),
    }


def as_table(report: dict[str, Any]) -> str:
    """The report as the table of the model card."""
    columns = list(next(iter(report["cells"].values())))[1:]
    lines = ["| tasks | n | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, cell in report["cells"].items():
        figures = (f"{100 * value:.1f} ({100 * low:.1f}-{100 * high:.1f})" for value, low, high in list(cell.values())[1:])
        lines.append(f"| {name} | {cell['tasks']} | " + " | ".join(figures) + " |")
    seeds = ", ".join(f"{100 * value:.1f}" for value in report["pass@1 by sampling seed"])
    return "\n".join(
        [*lines, "", f"pass@1 by sampling seed: {seeds}", f"outcomes: {report['outcomes']}", f"{report['wall_s']} s"]
    )


def _evaluate_task(generate: Generate, task: Task, index: int, num_seeds: int) -> Result:
    prompt = render(solve(task.prompt, system=None))
    known: dict[str, Verdict] = {}  # many samples are the same program; it is deterministic, so it is run once

    def grade(answer: str) -> Verdict:
        code = extract_code(answer.rpartition("</think>")[2])
        if code not in known:
            known[code] = judge(code, task.entry_point, task.hidden)
        return known[code]

    (greedy,) = generate(prompt, num_candidates=1, temperature=0.0)
    sampled = []
    for seed in range(num_seeds):
        answers = generate(prompt, num_candidates=NUM_CANDIDATES, temperature=TEMPERATURE, seed=seed * SEEDS_PER_TASK + index)
        sampled.append(tuple(map(grade, answers)))
    return Result(task, grade(greedy), tuple(sampled))


def _cell(results: Sequence[Result]) -> dict[str, Any]:
    figures: dict[str, Any] = {"tasks": len(results), "greedy": _interval([float(result.greedy.passed) for result in results])}
    for k in (1, 5, 20):
        figures[f"pass@{k}"] = _interval([pass_at_k(result.num_samples, result.num_passed, k) for result in results])
    return figures


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % bootstrap interval over tasks."""
    array, rng = np.array(values), np.random.default_rng(0)
    means = array[rng.integers(len(array), size=(NUM_RESAMPLES, len(array)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return round(float(array.mean()), 4), round(float(low), 4), round(float(high), 4)


def _by_seed(results: Sequence[Result]) -> list[float]:
    per_seed = zip(*(result.sampled for result in results), strict=True)
    return [round(float(np.mean([verdict.passed for verdicts in seed for verdict in verdicts])), 4) for seed in per_seed]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nano.evaluate", description="Reproduce the figures of the model card.")
    parser.add_argument("--model", type=Path, default=MODEL_DIR / GGUF_NAME, help="GGUF file to measure")
    parser.add_argument("--seeds", type=int, default=3, help="sampling seeds, 20 candidates per task each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
