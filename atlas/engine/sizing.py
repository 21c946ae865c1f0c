"""How many KV cells a model gets when the settings leave it open."""

from __future__ import annotations

import os
from pathlib import Path

from atlas.engine.hardware import find_gpu
from atlas.engine.runner import Model, supports_gpu

RESERVE_BYTES = int(1.2 * 1024**3)  # CUDA context and compute buffers; measured by others on 16-24 GB cards
HOST_SHARE = 4  # a quarter of the free memory may become KV cells, or copies of them; chosen, unmeasured
CELLS_MAX = 32768  # without a GPU more cells than this only cost start-up time; chosen, unmeasured
CELLS_MIN = 2048


def kv_bytes_per_cell(model: Model) -> int:
    """Bytes of keys and values of one token in f16 over all layers."""

    def number(key: str, default: int) -> int:
        value = model.meta(f"{model.architecture}.{key}")
        return int(value) if value and value.isdigit() else default

    heads = number("attention.head_count", 1)
    kv_heads = number("attention.head_count_kv", heads)
    head = model.width // heads
    key_size, value_size = number("attention.key_length", head), number("attention.value_length", head)
    return number("block_count", 1) * kv_heads * (key_size + value_size) * 2


def context_cells(model: Model, *, max_sequences: int, draft: Model | None = None) -> int:
    """Cells that fit the free memory, at most what all sequences could fill, at least one short context.

    `draft`: a model that gets as many beside.
    """
    gpu = find_gpu() if supports_gpu() else None
    budget = gpu.free_bytes - RESERVE_BYTES if gpu else free_host_bytes() // HOST_SHARE
    wanted = max_sequences * model.train_context_tokens
    cell_bytes = kv_bytes_per_cell(model) + (kv_bytes_per_cell(draft) if draft else 0)
    most = min(wanted, budget // cell_bytes, wanted if gpu else CELLS_MAX)
    return max(most, min(CELLS_MIN, model.train_context_tokens)) // 256 * 256 or 256


def saved_cells(model: Model, *, context_tokens: int) -> int:
    """Cells that may be copied to main memory: as many as the context has, within the same share of what is free."""
    return min(context_tokens, free_host_bytes() // HOST_SHARE // kv_bytes_per_cell(model))


def free_host_bytes() -> int:
    """MemAvailable of /proc/meminfo; where there is none, half the physical memory."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def physical_cores() -> int:
    """Cores this process may use, hyper-threads not counted where Linux tells; llama.cpp gains nothing from them."""
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text(encoding="ascii") if siblings.exists() else str(cpu))
    return max(1, len(cores))
