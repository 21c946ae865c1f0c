"""What a model would take, told from the header of its file before anything is loaded, and what there is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from atlas.engine.gguf_header import ARRAY, read_header
from atlas.engine.hardware import find_gpu, gpu_backend
from atlas.errors import Conflict
from atlas.settings import EngineSettings

GPU_RESERVE_BYTES = int(1.2 * 1024**3)  # CUDA context and compute buffers; measured by others on 16-24 GB cards
HOST_RESERVE_BYTES = 256 * 1024**2  # compute buffers, and room for the rest of the machine; chosen, unmeasured
CELLS_MIN = 2048  # the shortest context that is any use; chosen, unmeasured


class Need(NamedTuple):
    """Bytes of a model: its weights, and its cells at least."""

    weights_bytes: int
    cells_bytes: int
    reserve_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.cells_bytes + self.reserve_bytes


def need_of(path: Path, settings: EngineSettings) -> Need:
    """What the file would take under these settings. Raises ModelFileError: it is damaged, or gone."""
    header = read_header(path)
    architecture = header.text("general.architecture")

    def number(key: str, default: int) -> int:
        found = header.values.get(f"{architecture}.{key}")
        is_number = found is not None and found.kind != ARRAY and isinstance(found.value, int)
        return int(found.value) if found is not None and is_number else default

    train_context = number("context_length", CELLS_MIN)
    cells = settings.context_tokens or min(CELLS_MIN, train_context)
    reserve_bytes = GPU_RESERVE_BYTES if uses_gpu(settings) else HOST_RESERVE_BYTES
    return Need(path.stat().st_size, cells * kv_bytes(number, number("embedding_length", 0)), reserve_bytes)


def kv_bytes(number: Callable[[str, int], int], width: int) -> int:
    """Bytes of keys and values of one token in f16 over all layers; `number` reads a value of the architecture, or a default."""
    heads = number("attention.head_count", 1)
    kv_heads = number("attention.head_count_kv", heads)
    head = width // heads
    key_size, value_size = number("attention.key_length", head), number("attention.value_length", head)
    return number("block_count", 1) * kv_heads * (key_size + value_size) * 2


def check_room(name: str, need: Need, *, free_bytes: int, coming_bytes: int = 0) -> None:
    """Raises Conflict: it does not fit into what is free, and what will be once another model has gone."""
    room_bytes = free_bytes + coming_bytes
    if need.total_bytes <= room_bytes:
        return
    raise Conflict(
        f"model '{name}' needs {_gb(need.total_bytes)} (weights {_gb(need.weights_bytes)}, cells {_gb(need.cells_bytes)}), "
        f"{_gb(room_bytes)} are free; unload another first, load it instead of one, or lower engine.context_tokens",
        param="model_id",
    )


def free_bytes(settings: EngineSettings) -> int:
    """Memory for another model: the GPU's where layers go there, else the machine's."""
    gpu = find_gpu() if uses_gpu(settings) else None
    return free_host_bytes() if gpu is None else gpu.free_bytes


def uses_gpu(settings: EngineSettings) -> bool:
    return settings.gpu_layers != 0 and gpu_backend() is not None and find_gpu() is not None


def free_host_bytes() -> int:
    """MemAvailable of /proc/meminfo; where there is none, half the physical memory."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
