"""Best-of-k over HTTP: ATLAS beside llama-server, same commit of llama.cpp, model, threads and samplers, in one run.

Two random models: "vocabulary" has Qwen3's 151,936 tokens and next to no layers, so that sampling and Python dominate; "compute"
is 85 M parameters in 12 layers, so that matrices do. Requests alternate between the servers; the ratio is that of the medians.

    python -m benchmarks.engine [--runs 5] [--threads 2] [--prompt 512] [--tokens 96]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.peers import Peer, atlas, llama_server
from tests.ggufs import random_gguf

KS = (1, 4, 20)
CELLS = 16384
SAMPLING = {"temperature": 0.8, "top_k": 20, "top_p": 0.95, "min_p": 0.0}
RESULTS = Path(__file__).parent / "results"


def models(folder: Path) -> dict[str, Path]:
    vocabulary = random_gguf(folder / "vocabulary.gguf", vocab_pad=151_936, dtype=np.float16)
    compute = random_gguf(
        folder / "compute.gguf", vocab_pad=32_000, layers=12, embd=768, heads=12, kv_heads=4, head_dim=64, dtype=np.float16
    )
    return {"vocabulary": vocabulary, "compute": compute}


def best_of(peer: Peer, *, k: int, prompt_tokens: int, max_tokens: int, run: int) -> float:
    """Generated tokens per second of one n=k request with a prompt nobody has seen."""
    text = f"{run:06d} {k:03d} ".ljust(prompt_tokens, "x")  # one byte, one token
    body = {"model": peer.model, "prompt": text, "n": k, "max_tokens": max_tokens, "seed": run, "cache_prompt": True, **SAMPLING}
    start_s = time.perf_counter()
    answer = httpx.post(f"{peer.url}/v1/completions", json=body, headers=peer.headers, timeout=600)
    seconds = time.perf_counter() - start_s
    choices = answer.raise_for_status().json()["choices"]  # llama-server's usage counts one of them
    if [choice["finish_reason"] for choice in choices] != ["length"] * k:
        raise SystemExit(f"{peer.name} did not answer k={k} in full: {answer.text[:300]}")
    return float(k * max_tokens / seconds)


def compare(peers: list[Peer], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for k in KS:
        rates: dict[str, list[float]] = {peer.name: [] for peer in peers}
        for run in range(arguments.runs + 1):  # the first is a warm-up
            for peer in peers if run % 2 else peers[::-1]:
                rate = best_of(peer, k=k, prompt_tokens=arguments.prompt, max_tokens=arguments.tokens, run=run)
                rates[peer.name] += [rate] if run else []
        ours, theirs = (statistics.median(rates[name]) for name in ("atlas", "llama-server"))
        pairs = sorted(a / b for a, b in zip(rates["atlas"], rates["llama-server"], strict=True))
        rows.append({"k": k, "atlas": ours, "llama-server": theirs, "ratio": ours / theirs, "worst": pairs[0], "best": pairs[-1]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("runs", 5), ("threads", 2), ("prompt", 512), ("tokens", 96)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    report: dict[str, Any] = {"arguments": vars(arguments), "sampling": SAMPLING, "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, path in models(Path(folder)).items():
            with ExitStack() as stack:
                start = {"threads": arguments.threads, "cells": CELLS}
                ours = stack.enter_context(atlas(path, Path(folder) / f"home-{name}", **start))
                theirs = stack.enter_context(llama_server(path, slots=max(KS), **start))
                rows = compare([ours, theirs], arguments)
            report["models"][name] = rows
            for row in rows:
                print(
                    f"{name:>10}  k={row['k']:<3} atlas {row['atlas']:8.0f} tok/s   llama-server {row['llama-server']:8.0f} tok/s"
                    f"   ratio {row['ratio']:.2f} ({row['worst']:.2f}-{row['best']:.2f})"
                )
    write("engine", report)


def write(name: str, report: dict[str, Any]) -> None:
    """results/<date>-<commit>-<name>.json"""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y-%m-%d')}-{commit}-{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}", file=sys.stderr)


if __name__ == "__main__":
    main()
