"""A small machine for the filters of seccomp: enough of BPF to ask a filter what it says to a call."""

from __future__ import annotations

import struct

ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386 = 0x40000003
INSTRUCTION = struct.Struct("HBBI")


def ask(program: bytes, number: int, *arguments: int, architecture: int) -> int:
    """The verdict of a packed filter."""
    padded = [argument & (1 << 64) - 1 for argument in (*arguments, *([0] * (6 - len(arguments))))]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, architecture, 0, *padded)
    steps = [INSTRUCTION.unpack_from(program, position) for position in range(0, len(program), INSTRUCTION.size)]
    position = accumulator = 0
    while True:
        code, yes, no, operand = steps[position]
        position += 1
        if code == 0x06:
            return int(operand)
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif code == 0x54:
            accumulator &= operand
        else:
            holds = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: bool(accumulator & operand)}[code]
            position += yes if holds else no


def refused(verdict: int) -> int | None:
    """The error number of a refusal."""
    return verdict & 0xFFFF if verdict & 0xFFFF0000 == ERROR else None
