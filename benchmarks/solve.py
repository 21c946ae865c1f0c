"""From a task to a verified answer: ATLAS beside the same model behind llama-server with a grader behind it, in one run.

(a) One attempt of k samples on each of 100 nano tasks that nano was not trained on; the same file, prompt, sampling, budget of
candidates, threads and processors. All ways are asked task by task, in turns, and an answer counts if it passes the visible tests
(verified) and the hidden ones (right), which a judge runs after the clocks have stopped.
  atlas          `atlas solve`'s way: POST /v1/tasks to `atlas serve`, whose worker solves it; sealed sandbox, confirmation in a
                 fresh interpreter, money, journal, events; until the result has been read.
  atlas, inside  the same loop and sandbox, its engine in the same process: without HTTP, queue, metering and ledger.
  cold pytest    llama-server with n=k, then `python -m pytest` for every candidate, as many at a time as there are processors.
  cold, early    the same run, its clock stopped at the first candidate that passes.
  warm fork      the same answers, then a warm process that forks for each candidate in order, up to the first that passes.
Neither grader isolates anything. The peer's answers are generated once and graded three ways, so that its rows are paired.

(a, slow) The same with every forward pass of all engines stretched to the step time of a 14B model: slow_step.c is preloaded into
all processes, and what is missing to the step time is slept, so that processors are as free as beside a GPU. A step takes as long
with one row as with twenty, as on a GPU that is bound by reading weights; a prompt is one step. 30 ms is Qwen3-14B Q4 on an RTX
5060 Ti, 33 tokens a second.

(b) greedy, best of 5, best of 20 and the loop with 5 attempts, by `atlas.bench`, with intervals and the rate of false promises.

    python -m benchmarks.solve [--tasks 100] [--k 5] [--seeds 3] [--step-ms 30] [--parts a slow b] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from atlas import bench
from atlas.bench.values import Task
from atlas.engine import RemoteEngine, load_engine
from atlas.log import configure_logging
from atlas.sandbox import Sandbox
from atlas.settings import EngineSettings, LogSettings, SandboxSettings
from benchmarks.graders import ColdPytest, WarmFork
from benchmarks.peers import KEY, Peer, atlas, llama_server
from benchmarks.report import write
from benchmarks.sdists import CACHE
from benchmarks.solvers import MAX_TOKENS, SAMPLING, Answers, Ours, Served, Solved, asked, messages_of, one_attempt, solved_by_us
from nano.export import GGUF_NAME, MODEL_DIR

CELLS = 16384
MODEL = MODEL_DIR / GGUF_NAME
PRELOADED = "SLOW_STEP_IS_PRELOADED"
PARALLEL = 2  # tasks at a time in (b)


async def compare(
    ours: Mapping[str, Ours | Served], theirs: Peer, tasks: Sequence[Task], *, k: int, cold: ColdPytest, warm: WarmFork
) -> dict[str, list[Solved]]:
    """Every task each way, in turns; which way is first changes from task to task."""
    rows: dict[str, list[Solved]] = {}
    async with httpx.AsyncClient(timeout=600) as client:
        for number, task in enumerate(tasks):
            request = one_attempt(task, k, seed=number + 1)
            messages = await messages_of(request)
            turns = [*ours, "theirs"]
            for name in turns[number % len(turns) :] + turns[: number % len(turns)]:
                if name == "theirs":
                    answers = await asked(client, theirs, messages, k=k, seed=number + 1)
                    found = await asyncio.to_thread(graded, answers, task, cold, warm)
                else:
                    found = {name: await solved_by_us(ours[name], request)}
                for row, solved in found.items():
                    rows.setdefault(row, []).append(solved)
            print(f"\r{number + 1}/{len(tasks)} tasks", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return rows


def graded(answers: Answers, task: Task, cold: ColdPytest, warm: WarmFork) -> dict[str, Solved]:
    """The same answers by each grader."""
    every = cold.grade(answers.codes, task.visible.code)
    early = warm.grade(answers.codes, task.visible.code)
    decode_s = answers.decode_s

    def solved(winner: int | None, grade_s: float) -> Solved:
        return Solved(decode_s + grade_s, decode_s, 0.0, winner is not None, "" if winner is None else answers.codes[winner])

    return {
        "cold pytest": solved(every.winner, every.wall_s),
        "cold, early": solved(every.winner, every.first_s),
        "warm fork": solved(early.winner, early.wall_s),
    }


async def summary(rows: dict[str, list[Solved]], tasks: Sequence[Task], sandbox: Sandbox) -> dict[str, Any]:
    """Figures of each row; the hidden tests are run here, after all clocks have stopped."""
    found: dict[str, dict[str, Any]] = {}
    for name, row in rows.items():
        grades = [
            solved.is_verified and (await task.judge.grade(solved.code, sandbox.run)).passed
            for task, solved in zip(tasks, row, strict=True)
        ]
        wall_s = sum(solved.wall_s for solved in row)
        verified = [solved for solved in row if solved.is_verified]
        found[name] = {
            "tasks": len(row),
            "verified": len(verified),
            "right": sum(grades),
            "wall_s": wall_s,
            "verified_per_minute": 60 * len(verified) / wall_s,
            "right_per_minute": 60 * sum(grades) / wall_s,
            "first_verified_median_s": statistics.median(solved.wall_s for solved in verified) if verified else None,
            "first_verified_p90_s": _quantile([solved.wall_s for solved in verified], 0.9),
            "decode_s": statistics.mean(solved.decode_s for solved in row),
            "test_s": statistics.mean(solved.test_s for solved in row),
            "queue_s": statistics.mean(solved.queue_s for solved in row),
        }
    ours = found["atlas"]["right_per_minute"]  # the way of record; the other says what HTTP costs
    ratios = {
        name: ours / row["right_per_minute"] for name, row in found.items() if name[:5] != "atlas" and row["right_per_minute"]
    }
    return {"rows": found, "right_per_minute_ratio": ratios}


def _quantile(values: Sequence[float], share: float) -> float | None:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else None


@asynccontextmanager
async def servers(
    folder: Path, *, threads: int, name: str, step_ms: float | None = None
) -> AsyncIterator[tuple[Mapping[str, Ours | Served], Peer, Sandbox]]:
    """All that is compared, with the same model and threads; slowed alike if `step_ms` is given."""
    slow: dict[str, Any] = {"SLOW_STEP_MS": str(step_ms or 0)}
    os.environ |= slow  # heard by the engine in this process
    start: dict[str, Any] = {"threads": threads, "cells": CELLS}
    inside = EngineSettings(threads=threads, context_tokens=CELLS, gpu_layers=0, flash_attention="on", embedder="off")
    with ExitStack() as stack:
        ours = stack.enter_context(atlas(MODEL, folder / f"home-{name}", ATLAS_ENGINE_EMBEDDER="off", **start, **slow))
        theirs = stack.enter_context(llama_server(MODEL, slots=32, **start, **slow))
        async with new_sandbox() as sandbox, AsyncExitStack() as closing:
            served, engine = Served(ours), await load_engine(MODEL, model_id=ours.model, settings=inside)
            closing.push_async_callback(served.close)
            closing.push_async_callback(engine.close)
            yield {"atlas": served, "atlas, inside": Ours(engine, sandbox, model=ours.model)}, theirs, sandbox


@asynccontextmanager
async def new_sandbox() -> AsyncIterator[Sandbox]:
    sandbox = Sandbox(SandboxSettings(), log_settings=LogSettings(level="error"))
    await sandbox.start()
    try:
        await sandbox.status()
        yield sandbox
    finally:
        await sandbox.close()


def preload(module: str = "benchmarks.solve") -> None:
    """Start this process again with slow_step.c in it, and so in all that it starts."""
    if PRELOADED in os.environ:
        return
    source, library = Path(__file__).with_name("slow_step.c"), CACHE / "slow_step.so"
    CACHE.mkdir(exist_ok=True)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    environ = {**os.environ, PRELOADED: "1", "LD_PRELOAD": str(library)}
    os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], environ)


async def part_a(arguments: argparse.Namespace, folder: Path, *, name: str, step_ms: float | None = None) -> dict[str, Any]:
    suite = bench.first_of(bench.load_suite("nano"), arguments.tasks)
    async with servers(folder, threads=arguments.threads, name=name, step_ms=step_ms) as (ours, theirs, sandbox):
        with ColdPytest(folder / f"cold-{name}") as cold, WarmFork() as warm:
            await compare(ours, theirs, suite.tasks[:3], k=arguments.k, cold=cold, warm=warm)  # warms everything
            rows = await compare(ours, theirs, suite.tasks, k=arguments.k, cold=cold, warm=warm)
        return await summary(rows, suite.tasks, sandbox) | {"step_ms": step_ms}


async def part_b(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    suite = bench.first_of(bench.load_suite("nano"), arguments.tasks)
    methods = (*bench.standard_methods(k=5, attempts=5, max_tokens=MAX_TOKENS), bench.best_of(20, max_tokens=MAX_TOKENS))
    settings = bench.BenchSettings(
        suite=suite.name,
        suite_sha256=suite.sha256,
        num_tasks=len(suite.tasks),
        model="nano",
        methods=methods,
        seeds=tuple(range(1, arguments.seeds + 1)),
    )
    start: dict[str, Any] = {"threads": arguments.threads, "cells": CELLS}
    with atlas(MODEL, folder / "home-b", ATLAS_ENGINE_EMBEDDER="off", **start) as peer:
        async with new_sandbox() as sandbox:
            engine = RemoteEngine(f"{peer.url}/v1", model=peer.model, api_key=KEY)
            ours = Ours(engine, sandbox, model=peer.model)
            records = await measured(suite, settings, ours, folder / "bench")
            await engine.close()
    print(f"\n{bench.as_table(settings, records)}", flush=True)
    return bench.as_data(settings, records)


async def measured(suite: bench.Suite, settings: bench.BenchSettings, ours: Ours, folder: Path) -> list[bench.Record]:
    journal = bench.Journal(folder, settings)
    running = bench.Bench(
        suite,
        settings.methods,
        seeds=settings.seeds,
        model=ours.model,
        solve=ours.events,
        run=ours.sandbox.run,
        parallel=PARALLEL,
    )
    try:
        return await running.measure(journal, _tell)
    finally:
        journal.close()


def _tell(_record: bench.Record, num_done: int, num_all: int) -> None:
    print(f"\r{num_done}/{num_all} solvings", end="", file=sys.stderr, flush=True)


def show(title: str, part: dict[str, Any]) -> None:
    print(f"\n{title}")
    for name, row in part["rows"].items():
        first_s = row["first_verified_median_s"]
        print(
            f"  {name:12} right a minute {row['right_per_minute']:7.1f}   verified {row['verified']:3}, right {row['right']:3} "
            f"of {row['tasks']}   first verified {1e3 * (first_s or 0):6.0f} ms   "
            f"decode {1e3 * row['decode_s']:6.0f}, tests {1e3 * row['test_s']:6.0f}, queue {1e3 * row['queue_s']:4.0f} ms a task"
        )
    ratios = ", ".join(f"{ratio:.2f} times {name}" for name, ratio in part["right_per_minute_ratio"].items())
    print(f"  atlas is {ratios}", flush=True)


async def measure(arguments: argparse.Namespace) -> None:
    report: dict[str, Any] = {"arguments": vars(arguments), "sampling": SAMPLING, "cores": os.cpu_count()}
    report["load"] = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "a" in arguments.parts:
            report["a"] = await part_a(arguments, folder, name="a")
            show("(a) nano at its own speed", report["a"])
            keep(report, arguments)
        if "slow" in arguments.parts:
            report["slow"] = await part_a(arguments, folder, name="slow", step_ms=arguments.step_ms)
            show(f"(a, slow) every step {arguments.step_ms:g} ms", report["slow"])
            keep(report, arguments)
        if "b" in arguments.parts:
            report["b"] = await part_b(arguments, folder)
            keep(report, arguments)


def keep(report: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Written after each part: an hour's work is not to be lost in the last one."""
    report["load"].append(os.getloadavg()[0])
    if not arguments.quick:
        write("solve", report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tasks", 100), ("k", 5), ("seeds", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--step-ms", type=float, default=30.0)
    parser.add_argument("--parts", nargs="+", choices=("a", "slow", "b"), default=["a", "slow", "b"])
    parser.add_argument("--quick", action="store_true", help="six tasks, one seed, nothing written")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tasks, arguments.seeds = min(6, arguments.tasks), 1
    preload()
    configure_logging("error")
    asyncio.run(measure(arguments))


if __name__ == "__main__":
    main()
