"""The engine over HTTP: ATLAS beside llama-server, same commit of llama.cpp, model, threads and samplers, in one run.

Two models with random weights: "vocabulary" has Qwen3's 151,936 tokens and next to no layers, so that sampling and Python
dominate; "600m" is shaped like Qwen3-0.6B, in Q4_K_M. In each run the servers take turns at each load:

  streams n     n streamed requests at once, each with a prompt of its own; if n is below 8, eight of them in turns
  best of 20    one request with n=20

llama-cpp-python's own example server, which answers one request at a time, takes its turn at the streams.

A rate is generated tokens per second, prompt included. The ratio is the geometric mean of the runs' ratios; its lower bound is
one-sided, at 95 %, by Student's t over their logarithms. Then, on "compute" (85 M parameters): the first token of a request
whose prompt begins like one that is being answered, and the gaps between tokens of 8 streams while a long prompt arrives. Of
ATLAS alone: what of a step of 20 rows is Python ("vocabulary"), and the gaps of 8 streams beside a followed dashboard and a child
that hashes 2,000 files ("compute"); see benchmarks/steps.py.

`--gpu` measures steps and servers on a GPU instead: see benchmarks/gpu.py.

    python -m benchmarks.engine [--runs 5] [--threads 2] [--prompt N] [--tokens N] [--streams 1 4 8 20 32]
                                [--models vocabulary 600m compute]

By default prompts and answers are as long as suits each model (`MODELS`).
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from benchmarks import gpu, models, steps
from benchmarks.peers import Peer, atlas, example_server, llama_server
from benchmarks.report import write
from benchmarks.streams import SAMPLING, streamed

CELLS = 16384
STREAMS = (1, 4, 8, 20, 32)
BEST_OF = 20
EXAMPLE = "example server"
SLOTS = max(STREAMS)
LEAST_ANSWERS = 8  # of one turn; one or four at a time follow one another, since a single short answer is soon over
T95 = (math.inf, 6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83)  # Student's t, one-sided, by degrees of freedom
LONG_PROMPT = 4000
SHARED_PROMPT = 2000


class Subject(NamedTuple):
    """A model, and how long its prompts and answers are: a token of "600m" takes twenty times as long as one of "vocabulary"."""

    make: Callable[[Path], Path]
    prompt_tokens: int
    max_tokens: int


MODELS = {
    "vocabulary": Subject(models.vocabulary, 64, 48),
    "600m": Subject(models.qwen3_600m, 32, 24),
    "compute": Subject(models.compute, 64, 48),
}


class Load(NamedTuple):
    """What a server is asked at once."""

    name: str
    run: Callable[[Peer, int], Awaitable[float]]  # to tokens per second


def loads(at_once: Sequence[int], *, prompt_tokens: int, max_tokens: int) -> list[Load]:
    def text(run: int, number: int) -> str:  # one byte, one token
        return f"{run:04d} {number:04d} ".ljust(prompt_tokens, "x")

    def streams(num: int) -> Load:
        async def ask(peer: Peer, run: int) -> float:
            start_s = time.perf_counter()
            total = max(num, LEAST_ANSWERS)
            for first in range(0, total, num):
                prompts = (text(run, 100 * num + first + number) for number in range(num))
                await asyncio.gather(*(streamed(peer, prompt, max_tokens=max_tokens, seed=run, **SAMPLING) for prompt in prompts))
            return total * max_tokens / (time.perf_counter() - start_s)

        return Load(f"streams {num}", ask)

    async def best_of(peer: Peer, run: int) -> float:
        body = {"model": peer.model, "prompt": text(run, 9000), "n": BEST_OF, "max_tokens": max_tokens, "seed": run, **SAMPLING}
        start_s = time.perf_counter()
        answer = await asyncio.to_thread(httpx.post, f"{peer.url}/v1/completions", json=body, headers=peer.headers, timeout=600)
        seconds = time.perf_counter() - start_s
        choices = answer.raise_for_status().json()["choices"]  # llama-server's usage counts one of them
        if [choice["finish_reason"] for choice in choices] != ["length"] * BEST_OF:
            raise SystemExit(f"{peer.name} did not answer in full: {answer.text[:300]}")
        return BEST_OF * max_tokens / seconds

    return [*map(streams, at_once), Load(f"best of {BEST_OF}", best_of)]


async def compare(peers: Sequence[Peer], todo: Sequence[Load], *, runs: int) -> list[dict[str, Any]]:
    """Every load by each peer in turns; the first run is a warm-up."""
    rates: dict[str, dict[str, list[float]]] = {load.name: {peer.name: [] for peer in peers} for load in todo}
    for run in range(runs + 1):
        for load in todo:
            for peer in peers if run % 2 else peers[::-1]:
                if peer.name == EXAMPLE and load.name[:7] != "streams":
                    continue
                rate = await load.run(peer, run)
                rates[load.name][peer.name] += [rate] if run else []
            print(f"\rrun {run} of {runs}, {load.name}   ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return [{"load": name} | summary(found["atlas"], found["llama-server"], found[EXAMPLE]) for name, found in rates.items()]


def summary(ours: Sequence[float], theirs: Sequence[float], example: Sequence[float]) -> dict[str, Any]:
    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    mean, num = statistics.mean(logs), len(logs)
    spread = T95[min(num, len(T95)) - 1] * statistics.stdev(logs) / math.sqrt(num) if num > 1 else math.inf
    return {
        "atlas": statistics.median(ours),
        "llama-server": statistics.median(theirs),
        EXAMPLE: statistics.median(example) if example else None,
        "ratio": math.exp(mean),
        "lower": math.exp(mean - spread),
        "runs": {"atlas": ours, "llama-server": theirs, EXAMPLE: example},
    }


async def shared_prefix(peer: Peer, run: int) -> dict[str, float]:
    """First token of a prompt nobody has seen, and of one that begins alike, while the first is being answered."""
    prefix, begun = f"{run:04d} ".ljust(SHARED_PROMPT, "y"), asyncio.Event()
    first = asyncio.create_task(streamed(peer, f"{prefix} one", max_tokens=100, begun=begun, temperature=0))
    await begun.wait()
    second = await streamed(peer, f"{prefix} another", max_tokens=8, temperature=0)
    cold_s = (await first).first_s
    return {"cold_s": cold_s, "second_s": second.first_s, "share": second.first_s / cold_s}


async def beside_a_prompt(peer: Peer, run: int) -> dict[str, float]:
    """Gaps between tokens of 8 streams, from the arrival of a prompt of 4,000 tokens to its first token."""
    events = [asyncio.Event() for _ in range(8)]
    asked = (streamed(peer, f"{run:04d} {i} gaps", max_tokens=200, begun=event, temperature=0) for i, event in enumerate(events))
    streams = [asyncio.create_task(each) for each in asked]
    await asyncio.gather(*(event.wait() for event in events))
    long = await streamed(peer, f"{run:04d} ".ljust(LONG_PROMPT, "q"), max_tokens=1, temperature=0)
    until_s = long.begun_s + long.first_s
    gaps = [
        later - earlier
        for stream in await asyncio.gather(*streams)
        for earlier, later in zip(stream.pieces_s, stream.pieces_s[1:], strict=False)
        if later > long.begun_s and earlier < until_s
    ]
    return {"p99_s": sorted(gaps)[int(0.99 * len(gaps))], "median_s": statistics.median(gaps), "prompt_s": long.first_s}


async def latencies(peers: Sequence[Peer], *, runs: int) -> dict[str, dict[str, dict[str, float]]]:
    """Medians of each figure, by measurement and peer."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, measure in (("shared prefix", shared_prefix), ("beside a prompt", beside_a_prompt)):
        seen: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in peers}
        for run in range(runs):
            for peer in peers if run % 2 else peers[::-1]:
                seen[peer.name].append(await measure(peer, run))
        found[name] = {
            peer: {figure: statistics.median(each[figure] for each in each_run) for figure in each_run[0]}
            for peer, each_run in seen.items()
        }
    return found


async def measured(model: str, path: Path, home: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    lengths = {"prompt_tokens": arguments.prompt or MODELS[model].prompt_tokens, "max_tokens": tokens_of(model, arguments)}
    todo = loads(arguments.streams, **lengths)
    start = {"threads": arguments.threads, "cells": CELLS}
    with ExitStack() as stack:
        ours = stack.enter_context(atlas(path, home, **start))
        theirs = stack.enter_context(llama_server(path, slots=SLOTS, **start))
        example = stack.enter_context(example_server(path, **start))
        report: dict[str, Any] = {**lengths, "loads": await compare([ours, theirs, example], todo, runs=arguments.runs)}
        if model == "compute":
            report["latencies"] = await latencies([ours, theirs], runs=arguments.runs)
    return report | {"alone": await alone(model, path, home.with_name(f"{home.name}-alone"), arguments)}


def tokens_of(model: str, arguments: argparse.Namespace) -> int:
    return int(arguments.tokens or MODELS[model].max_tokens)


async def alone(model: str, path: Path, home: Path, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What concerns ATLAS only: a server of 20 sequences whose pages are open to all."""
    more = {"ATLAS_ENGINE_MAX_SEQUENCES": str(steps.ROWS), "ATLAS_AUTH_MODE": "off"}
    with atlas(path, home, threads=arguments.threads, cells=CELLS, **more) as peer:
        runs = range(1, arguments.runs + 1)
        if model == "vocabulary":
            tokens = tokens_of(model, arguments)
            return {"python": steps.medians([await steps.python_per_step(peer, run, tokens=tokens) for run in runs])}
        if model == "compute":
            files = steps.make_files(home / "files")
            each = [await steps.gaps_in_a_busy_house(peer, 2 * run, tokens=100, folder=files) for run in runs]
            return {"busy house": steps.medians(each)}
    return {}


def show(model: str, report: dict[str, Any]) -> None:
    for row in report["loads"]:
        print(
            f"{model:>10}  {row['load']:<11} atlas {row['atlas']:7.1f} tok/s   llama-server {row['llama-server']:7.1f} tok/s"
            f"   ratio {row['ratio']:.2f}, at least {row['lower']:.2f}"
            + (f"   example server {row[EXAMPLE]:7.1f} tok/s" if row[EXAMPLE] else "")
        )
    for name, peers in report.get("latencies", {}).items():
        for peer, figures in peers.items():
            print(f"{model:>10}  {name:<16} {peer:<12} " + "   ".join(f"{key} {value:.3f}" for key, value in figures.items()))
    for name, figures in report["alone"].items():
        print(f"{model:>10}  {name:<16} atlas        " + "   ".join(f"{key} {value:.2f}" for key, value in figures.items()))


def main() -> None:
    if "--gpu" in sys.argv:
        sys.argv.remove("--gpu")
        gpu.main()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("runs", 5), ("threads", 2), ("prompt", None), ("tokens", None)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--streams", nargs="+", type=int, choices=STREAMS, default=STREAMS)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    arguments = parser.parse_args()
    report: dict[str, Any] = {"arguments": vars(arguments), "sampling": SAMPLING, "load": [os.getloadavg()[0]], "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            path = MODELS[name].make(Path(folder))
            report["models"][name] = asyncio.run(measured(name, path, Path(folder) / f"home-{name}", arguments))
            show(name, report["models"][name])
    report["load"].append(os.getloadavg()[0])
    write("engine", report)


if __name__ == "__main__":
    main()
