"""What this machine can run a model on, found out without loading llama.cpp."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import msgspec

# Shared libraries of the llama.cpp backends that run layers on a GPU; the file names are ggml's build targets.
_GPU_BACKENDS = ("cuda", "hip", "vulkan", "metal", "sycl")
TOOL_TIMEOUT_S = 10.0


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """An NVIDIA GPU as the driver reports it."""

    name: str
    free_bytes: int
    total_bytes: int


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """What there is, and what the installed llama.cpp can use of it.

    Attributes:
        backend: the GPU backend llama.cpp was built with, e.g. "cuda"; None for a CPU build.
        nvcc: path of the CUDA compiler, with which a CUDA build can be made.
    """

    gpu: Gpu | None
    backend: str | None
    nvcc: str | None

    @property
    def notice(self) -> str | None:
        """Said wherever a GPU lies idle because llama.cpp was built without it."""
        if self.gpu is None or self.backend is not None:
            return None
        cause = "it was built before nvcc was there" if self.nvcc else "there was no CUDA compiler (nvcc) to build it with"
        return f"GPU {self.gpu.name} is not used: llama.cpp is a CPU build, {cause}; see docs/operations.md, 'A GPU without nvcc'"


def find_hardware() -> Hardware:
    """Look at the machine; a few milliseconds without a GPU, under a second with one."""
    return Hardware(gpu=find_gpu(), backend=gpu_backend(), nvcc=shutil.which("nvcc"))


def find_gpu() -> Gpu | None:
    """The NVIDIA GPU with the most free memory; None without one, or without its driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(query, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return None  # a driver in trouble: better no GPU than no server
    return parse_gpus(listing.stdout) if listing.returncode == 0 else None


def parse_gpus(listing: str) -> Gpu | None:
    """The one with the most free memory of nvidia-smi's lines "name, free MiB, total MiB"."""
    found = []
    for line in listing.splitlines():
        fields = [field.strip() for field in line.rsplit(",", 2)]
        if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit():
            found.append(Gpu(name=fields[0], free_bytes=int(fields[1]) * 1024**2, total_bytes=int(fields[2]) * 1024**2))
    return max(found, key=lambda gpu: gpu.free_bytes, default=None)


def has_unsafe_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this is a virtual machine whose processor announces AMX.

    Some lose its registers when a thread is moved, and the next tile instruction ends the process with SIGILL: seen five times in
    two hours of tests on a Xeon (docs/log.md, 2026-11-28).
    """
    try:
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return "hypervisor" in flags and "amx_tile" in flags


def gpu_backend() -> str | None:
    """The GPU backend among llama.cpp's shared libraries. The runner asks llama.cpp itself once it is loaded."""
    spec = importlib.util.find_spec("llama_cpp")  # finds without importing: that would take a second
    if spec is None or spec.origin is None:
        return None
    names = [path.name for path in (Path(spec.origin).parent / "lib").glob("*ggml*")]
    return next((backend for backend in _GPU_BACKENDS if any(f"ggml-{backend}" in name for name in names)), None)
