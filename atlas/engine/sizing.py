"""How many KV cells a model gets when the settings leave it open."""

from __future__ import annotations

import os
from pathlib import Path

from atlas.engine.hardware import find_gpu
from atlas.engine.memory import CELLS_MIN, GPU_RESERVE_BYTES, free_host_bytes, kv_bytes
from atlas.engine.runner import Model, supports_gpu

HOST_SHARE = 4  # a quarter of the free memory may become KV cells, or copies of them; chosen, unmeasured
CELLS_MAX = 32768  # without a GPU more cells than this only cost start-up time; chosen, unmeasured


def kv_bytes_per_cell(model: Model) -> int:
    """Bytes of keys and values of one token in f16 over all layers."""

    def number(key: str, default: int) -> int:
        value = model.meta(f"{model.architecture}.{key}")
        return int(value) if value and value.isdigit() else default

    return kv_bytes(number, model.width)


def context_cells(model: Model, *, max_sequences: int, draft: Model | None = None) -> int:
    """Cells that fit the free memory, at most what all sequences could fill, at least one short context.

    `draft`: a model that gets as many beside.
    """
    gpu = find_gpu() if supports_gpu() else None
    budget = gpu.free_bytes - GPU_RESERVE_BYTES if gpu else free_host_bytes() // HOST_SHARE
    wanted = max_sequences * model.train_context_tokens
    cell_bytes = kv_bytes_per_cell(model) + (kv_bytes_per_cell(draft) if draft else 0)
    most = min(wanted, budget // cell_bytes, wanted if gpu else CELLS_MAX)
    return max(most, min(CELLS_MIN, model.train_context_tokens)) // 256 * 256 or 256


def saved_cells(model: Model, *, context_tokens: int) -> int:
    """Cells that may be copied to main memory: as many as the context has, within the same share of what is free."""
    return min(context_tokens, free_host_bytes() // HOST_SHARE // kv_bytes_per_cell(model))


def physical_cores() -> int:
    """Cores this process may use, hyper-threads not counted where Linux tells; llama.cpp gains nothing from them."""
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text(encoding="ascii") if siblings.exists() else str(cpu))
    return max(1, len(cores))
