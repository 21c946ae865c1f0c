"""The engine's steps on a GPU, and ATLAS beside llama-server there: a model of Qwen3-14B's shape in Q4_K, random blocks.

What a step of 1, 8, 20 and 64 rows takes, each row with a sampled token, as a share of the time that reading the weights once
must take (the roofline: weights' bytes over the memory's bandwidth):

  chain       logits come to the host, the engine's sampler draws (what ATLAS does)
  device      a chain of llama.cpp's own, attached to each sequence, draws on the device
  unified     all rows share the prompt's cells; `split`: each sequence has cells and a copy of the prompt of its own

then streams of both servers, as benchmarks.engine has them. With CUDA, llama.cpp is first built for the card's architecture, out
of a trimmed copy of the sources, once; ATLAS and llama-server run the same libraries. Without a GPU the same is rehearsed on a
small model, and the report says so.

    python -m benchmarks.gpu [--rows 1 8 20 64] [--prompt 512] [--steps 64] [--bandwidth-gb-s X] [--layers 40]
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import models
from benchmarks.peers import LLAMA_CPP_PYTHON, atlas, llama_server
from benchmarks.report import write
from benchmarks.sdists import CACHE, unpacked
from benchmarks.streams import SAMPLING, streamed

BANDWIDTH_GB_S = {"H200": 4800, "H100": 3350, "A100": 2039, "5090": 1792, "4090": 1008, "3090": 936, "5060 Ti": 448, "L4": 300}
NEEDED = ("CMakeLists.txt", "LICENSE", "app", "cmake", "common", "ggml", "include", "licenses", "pocs", "src", "tools", "vendor")
NOT_NEEDED = ("ggml-vulkan", "ggml-sycl", "ggml-hexagon", "ggml-opencl", "ggml-metal", "ggml-et", "ggml-webgpu", "ggml-cann")
BUILT = "ATLAS_BENCHMARK_LIBRARIES"
BATCH_TOKENS = 512


class Card(NamedTuple):
    """The first GPU; `capability` as CMake names architectures."""

    name: str
    capability: str


def card() -> Card | None:
    query = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    with suppress(OSError, subprocess.CalledProcessError):
        name, capability = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
        return Card(name, capability.replace(".", ""))
    return None


# -- building --


def trimmed(sources: Path, target: Path) -> Path:
    """A copy of llama.cpp with what a build for CUDA needs: 37 MB of 180."""
    target.mkdir(parents=True, exist_ok=True)
    for name in NEEDED:
        if (sources / name).is_dir():
            shutil.copytree(sources / name, target / name, ignore=shutil.ignore_patterns(*NOT_NEEDED), dirs_exist_ok=True)
        elif (sources / name).exists():
            shutil.copy2(sources / name, target / name)
    return target


def build(found: Card) -> Path:
    """Folder of llama-server and the libraries, for this card's architecture alone; built once, some ten minutes."""
    folder = CACHE / f"cuda-{found.capability}"
    binaries = folder / "build/bin"
    if not (binaries / "llama-server").exists():
        sources = trimmed(unpacked("llama-cpp-python", LLAMA_CPP_PYTHON) / "vendor/llama.cpp", folder / "sources")
        off = [f"-D{name}=OFF" for name in ("LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES")]
        on = ["-DGGML_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={found.capability}", "-DCMAKE_BUILD_TYPE=Release"]
        subprocess.run(["cmake", "-S", str(sources), "-B", str(folder / "build"), *on, *off], check=True)
        wanted = ["--target", "llama-server", "llama", f"-j{os.cpu_count()}"]
        subprocess.run(["cmake", "--build", str(folder / "build"), *wanted], check=True)
    return binaries


def use(binaries: Path) -> None:
    """Start this process again with these libraries under the binding, and so in all that it starts."""
    if os.environ.get(BUILT) != str(binaries):
        given = {BUILT: str(binaries), "LLAMA_CPP_LIB_PATH": str(binaries), "LLAMA_SERVER": str(binaries / "llama-server")}
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:]], {**os.environ, **given})


# -- steps --


class Steps:
    """A context with `rows` sequences that continue one prompt, and their samplers."""

    def __init__(self, model: Any, *, rows: int, prompt_tokens: int, steps: int, is_unified: bool, on_device: bool) -> None:
        from atlas.engine.binding import c  # after `use`
        from atlas.engine.chain import Chain
        from atlas.engine.runner import Batch

        self._c, self._model, self.rows, self._prompt_tokens = c, model, rows, prompt_tokens
        each = prompt_tokens + steps + 8
        params = c.llama_context_default_params()
        params.n_ctx = prompt_tokens + rows * (steps + 8) if is_unified else rows * _padded(each)
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_seq_max = params.n_outputs_max = rows
        params.kv_unified, params.no_perf, params.flash_attn_type = is_unified, True, 1
        params.n_threads = params.n_threads_batch = os.cpu_count() or 1
        self._chains = [
            Chain(seed=row, temperature=0.8, top_k=20, top_p=0.95, min_p=0.0) for row in range(rows if on_device else 0)
        ]
        configs = (c.llama_sampler_seq_config * max(1, len(self._chains)))()
        for row, chain in enumerate(self._chains):
            configs[row].seq_id, configs[row].sampler = row, ctypes.cast(chain.handle, ctypes.c_void_p)
        if on_device:
            params.samplers, params.n_samplers = configs, rows
        self._configs = configs
        self._context = c.llama_init_from_model(model.handle, params)
        if not self._context:
            raise MemoryError(f"no context of {params.n_ctx} tokens for {rows} rows")
        self._batch = Batch(BATCH_TOKENS)
        self._position = prompt_tokens
        self._prefill()

    def _prefill(self) -> None:
        tokens = [(7 * i) % 90 + 33 for i in range(self._prompt_tokens)]
        for start in range(0, len(tokens), BATCH_TOKENS):
            self._batch.clear()
            self._batch.add((0,), start, tokens[start : start + BATCH_TOKENS], output=start + BATCH_TOKENS >= len(tokens))
            self._decode()
        memory = self._c.llama_get_memory(self._context)
        for row in range(1, self.rows):
            self._c.llama_memory_seq_cp(memory, 0, row, -1, -1)

    def _decode(self) -> None:
        if code := self._c.llama_decode(self._context, self._batch.as_struct()):
            raise SystemExit(f"llama_decode failed with {code}")

    def step(self, tokens: Iterable[int], draw: Callable[[Any, int], list[int]]) -> list[int]:
        """Every row takes a token and gets the next one."""
        self._batch.clear()
        self._batch.add_each([(row,) for row in range(self.rows)], [self._position] * self.rows, list(tokens))
        self._decode()
        self._position += 1
        return draw(self._context, self.rows)

    def close(self) -> None:
        self._c.llama_free(self._context)
        for chain in self._chains:
            chain.close()


def _padded(tokens: int) -> int:
    return -(-tokens // 256) * 256


def on_host(model: Any, rows: int) -> Callable[[Any, int], list[int]]:
    """The engine's own sampler, over logits that have come to the host."""
    import numpy as np

    from atlas.engine.binding import c
    from atlas.engine.chain import Candidates
    from atlas.engine.sampler import Recommended, Sampler, Want, sample
    from atlas.types import Sampling

    wants = [
        Want(Sampler(Sampling(**SAMPLING), Recommended(), seed=row, prompt_tail=[]), None, None, False) for row in range(rows)
    ]
    scratch = Candidates()

    def draw(context: Any, num: int) -> list[int]:
        logits = np.ctypeslib.as_array(c.llama_get_logits(context), shape=(num, model.vocab.size))
        return [choice.token for choice, _ in sample(logits, wants, scratch)]

    return draw


def on_device(context: Any, rows: int) -> list[int]:
    from atlas.engine.binding import c

    return [int(c.llama_get_sampled_token_ith(context, row)) for row in range(rows)]


def step_ms(model: Any, *, rows: int, prompt_tokens: int, steps: int, is_unified: bool, is_on_device: bool) -> float | None:
    """Median of the second half of the steps; None where the device has no room for it."""
    try:
        kind = {"is_unified": is_unified, "on_device": is_on_device}
        running = Steps(model, rows=rows, prompt_tokens=prompt_tokens, steps=steps, **kind)
    except MemoryError:
        return None
    draw = on_device if is_on_device else on_host(model, rows)
    tokens, times = [65] * rows, []
    for _ in range(steps):
        started_s = time.perf_counter()
        tokens = running.step(tokens, draw)
        times.append(1e3 * (time.perf_counter() - started_s))
    running.close()
    return statistics.median(times[steps // 2 :])


WAYS = {
    "chain, unified": {"is_unified": True, "is_on_device": False},
    "device, unified": {"is_unified": True, "is_on_device": True},
    "chain, split": {"is_unified": False, "is_on_device": False},
}


def steps_of(path: Path, arguments: argparse.Namespace, roofline_ms: float | None) -> dict[str, Any]:
    from atlas.engine.runner import Model

    started_s = time.perf_counter()
    model = Model(path)
    report: dict[str, Any] = {"load_s": time.perf_counter() - started_s, "bytes": model.size_bytes, "steps": []}
    print(f"{path.name}: {model.size_bytes / 1e9:.2f} GB, loaded in {report['load_s']:.1f} s")
    for rows in arguments.rows:
        for way, kind in WAYS.items():
            found_ms = step_ms(model, rows=rows, prompt_tokens=arguments.prompt, steps=arguments.steps, **kind)
            share = roofline_ms / found_ms if roofline_ms and found_ms else None
            report["steps"].append({"rows": rows, "way": way, "step_ms": found_ms, "roofline_share": share})
            rate = "no room" if found_ms is None else f"{found_ms:8.2f} ms a step {1e3 * rows / found_ms:8.0f} tok/s"
            print(
                f"{rows:4} rows  {way:16} {rate}" + ("" if share is None else f"  {100 * share:5.1f} % of the roofline"),
                flush=True,
            )
    model.close()
    return report


# -- servers --


async def rate(peer: Any, rows: int, arguments: argparse.Namespace, *, run: int) -> float:
    prompts = (f"{run:04d} {row:04d} ".ljust(arguments.prompt, "x") for row in range(rows))
    started_s = time.perf_counter()
    await asyncio.gather(*(streamed(peer, text, max_tokens=arguments.steps, seed=run, **SAMPLING) for text in prompts))
    return float(rows * arguments.steps / (time.perf_counter() - started_s))


def servers(path: Path, home: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Streams a second, prompt included; medians of three runs in turns after a warm-up."""
    cells = max(arguments.rows) * _padded(arguments.prompt + arguments.steps + 16)
    start = {"threads": os.cpu_count() or 1, "cells": cells}
    found = []
    with ExitStack() as stack:
        peers = [stack.enter_context(atlas(path, home, ATLAS_ENGINE_EMBEDDER="off", **start))]
        peers.append(stack.enter_context(llama_server(path, slots=max(arguments.rows), **start)))
        for rows in arguments.rows:
            rates: dict[str, list[float]] = {peer.name: [] for peer in peers}
            for run in range(4):
                for peer in peers if run % 2 else peers[::-1]:
                    rates[peer.name] += [asyncio.run(rate(peer, rows, arguments, run=run + 10 * rows))][: 1 if run else 0]
            medians = {name: statistics.median(each) for name, each in rates.items()}
            found.append({"streams": rows, **medians, "ratio": medians["atlas"] / medians["llama-server"]})
            print(f"{rows:4} streams  " + "  ".join(f"{name} {value:8.1f} tok/s" for name, value in medians.items()), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 20, 64])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--bandwidth-gb-s", type=float)
    parser.add_argument("--layers", type=int, default=models.QWEN3_14B.layers, help="fewer: a quicker look, less true")
    arguments = parser.parse_args()
    found = card()
    if found is not None:
        use(build(found))
    else:
        print("no GPU here: a rehearsal on the CPU with a small model; none of its figures says anything of a GPU")
    shape = models.REHEARSAL if found is None else models.QWEN3_14B._replace(layers=arguments.layers)
    with tempfile.TemporaryDirectory() as name:
        path = models.random_blocks(Path(name), shape)
        report: dict[str, Any] = {"card": found and found._asdict(), "is_rehearsal": found is None, "arguments": vars(arguments)}
        report |= steps_of(path, arguments, roofline(found, path, arguments.bandwidth_gb_s))
        report["servers"] = servers(path, Path(name) / "home", arguments)
    write("gpu", report)


def roofline(found: Card | None, path: Path, bandwidth_gb_s: float | None) -> float | None:
    """Milliseconds in which the weights can be read once; None where the bandwidth is not known."""
    known = next((value for name, value in BANDWIDTH_GB_S.items() if found is not None and name in found.name), None)
    bandwidth = bandwidth_gb_s or known
    return None if bandwidth is None else path.stat().st_size / (bandwidth * 1e9) * 1e3


if __name__ == "__main__":
    main()
