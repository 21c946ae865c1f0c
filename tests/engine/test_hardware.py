"""What is found out about a machine from what it says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas.engine.hardware import has_unsafe_amx


@pytest.mark.parametrize(
    ("flags", "is_unsafe"),
    [
        ("fpu hypervisor amx_tile amx_int8", True),
        ("fpu amx_tile amx_int8", False),
        ("fpu hypervisor avx512f", False),
        ("", False),
    ],
)
def test_amx_is_not_trusted_in_a_virtual_machine(tmp_path: Path, flags: str, is_unsafe: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert has_unsafe_amx(cpuinfo) is is_unsafe


def test_a_machine_that_says_nothing_of_itself_is_trusted(tmp_path: Path) -> None:
    assert not has_unsafe_amx(tmp_path / "missing")
