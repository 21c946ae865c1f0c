from __future__ import annotations

import os
from pathlib import Path

from atlas.dashboard.hardware import Hardware, parse_gpus

LISTING = "NVIDIA H200, 37, 40000, 143771, 41, 310.55\nNVIDIA A2, [N/A], 100, 15356, [N/A], [N/A]\nbroken\n"


def test_gpus_are_read_as_nvidia_smi_lists_them() -> None:
    large, small = parse_gpus(LISTING)
    assert (large.name, large.busy, large.celsius, large.watts) == ("NVIDIA H200", 0.37, 41, 310.55)
    assert large.used_bytes == 40000 * 1024**2
    assert (small.busy, small.celsius, small.watts) == (None, None, None)
    assert parse_gpus("") == ()


async def test_a_machine_without_gpu_shows_its_processor(tmp_path: Path) -> None:
    hardware = Hardware(tool=str(tmp_path / "none"))
    reading = await hardware.read()
    assert reading.gpus == ()
    assert reading.num_cores == os.cpu_count()
    assert reading.memory_total_bytes
    assert reading.memory_used_bytes
    assert 0 < reading.memory_used_bytes < reading.memory_total_bytes
    assert reading.process_bytes


async def test_busy_is_the_share_since_the_reading_before(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 100 800 0 0 0 0 0 0\n")
    hardware = Hardware(tool=str(tmp_path / "none"), proc=tmp_path)
    assert hardware.take().cpu_busy is None
    stat.write_text("cpu  175 0 100 825 0 0 0 0 0 0\n")
    assert hardware.take().cpu_busy == 0.75
    assert hardware.take().memory_total_bytes is None


async def test_a_tool_that_fails_is_no_gpu(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho NVIDIA-SMI has failed; exit 9\n")
    tool.chmod(0o755)
    assert (await Hardware(tool=str(tool)).read()).gpus == ()
    tool.write_text(f"#!/bin/sh\nprintf '{LISTING.splitlines()[0]}'\n")
    assert (await Hardware(tool=str(tool)).read()).gpus[0].name == "NVIDIA H200"


async def test_many_who_look_share_a_reading() -> None:
    hardware = Hardware()
    assert await hardware.read() is await hardware.read()
