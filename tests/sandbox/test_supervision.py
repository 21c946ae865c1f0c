"""What the pool keeps of what a box writes. The writer is not trusted."""

from __future__ import annotations

import asyncio
import json
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas.sandbox.boxes import BoxSpec
from atlas.sandbox.inside import values
from atlas.sandbox.inside.frames import FRAME_LIMIT_BYTES, write_body, write_frame
from atlas.sandbox.supervision import Box, HeadAndTail, Output, is_too_full, parse_frames
from atlas.sandbox.zygotes import Ended
from atlas.types import RunLimits


def framed(*bodies: bytes) -> bytes:
    return b"".join(struct.pack("!I", len(body)) + body for body in bodies)


def test_frames_are_read_in_order() -> None:
    assert parse_frames(framed(b'{"a":1}', b"[2]", b"null")) == ([{"a": 1}, [2], None], False)


def test_a_frame_that_stops_half_way_is_damage() -> None:
    assert parse_frames(framed(b"[1]") + framed(b"[2, 3]")[:-2]) == ([[1]], True)
    assert parse_frames(framed(b"[1]") + b"\0\0") == ([[1]], True)


def test_a_frame_that_is_not_json_is_damage_and_ends_the_reading() -> None:
    assert parse_frames(framed(b"[1]", b"{", b"[2]")) == ([[1]], True)


def test_a_length_beyond_what_came_is_damage() -> None:
    assert parse_frames(b"\xff\xff\xff\xff" + b"x" * 100) == ([], True)


def test_json_too_deep_for_the_parser_is_damage() -> None:
    assert parse_frames(framed(b"[" * 100_000 + b"]" * 100_000)) == ([], True)


@given(st.binary(max_size=400))
def test_no_bytes_make_the_reader_fail(report: bytes) -> None:
    frames, is_damaged = parse_frames(report)
    assert is_damaged or len(framed(*(b"" for _ in frames))) <= len(report)


FULL = {
    "lists": b"[" + b"[]," * 700_000 + b"1]",
    "objects": b"[" + b"{}," * 700_000 + b"1]",
    "names": b"{" + b",".join(b'"%d":0' % number for number in range(400_000)) + b"}",
    "strings": b"[" + b'"",' * 1_300_000 + b"1]",
    "numbers": b"[" + b"1," * 4_300_000 + b"1]",
}


@pytest.mark.parametrize("what", FULL)
async def test_a_report_of_too_many_values_is_not_read_but_ends_the_run_by_its_limit(what: str) -> None:
    box, _, writers = make_box()
    writing = asyncio.create_task(asyncio.to_thread(write_body, writers[2], FULL[what]))
    box.follow()
    await writing
    for descriptor in writers:
        os.close(descriptor)
    result = box.result(Ended(status=0))
    assert (result.ending, result.frames) == ("output", ())


@pytest.mark.parametrize(
    ("value", "times"), [([1] * (values.SIZE_LIMIT_BYTES // 2 - 16), 2), ([[1, 2]] * 290_000, 2), ([[]] * 400_000, 1)]
)
def test_the_largest_values_that_travel_are_within_what_a_report_may_hold(value: list[object], times: int) -> None:
    frame = framed(json.dumps(values.encode(value), separators=(",", ":")).encode())
    assert not is_too_full(frame * times)


def test_a_short_report_is_read_whatever_it_holds() -> None:
    assert not is_too_full(b"[" * (1 << 20))


def test_a_frame_larger_than_the_limit_is_refused_by_the_writer() -> None:
    readable, writable = os.pipe()
    with pytest.raises(ValueError, match="bytes is more than"):
        write_frame(writable, "x" * FRAME_LIMIT_BYTES)
    os.close(readable)
    os.close(writable)


async def test_output_beyond_its_limit_is_cut_and_told_once() -> None:
    readable, writable = os.pipe()
    calls = []
    output = Output(readable, 10, lambda: calls.append("full"))
    output.follow()
    os.write(writable, b"0123456789")
    await asyncio.sleep(0.01)
    assert calls == []
    os.write(writable, b"more")
    os.write(writable, b"and more")
    await asyncio.sleep(0.01)
    os.close(writable)
    assert output.close() == b"0123456789"
    assert calls == ["full"]


async def test_stderr_keeps_its_head_and_its_tail() -> None:
    readable, writable = os.pipe()
    output = HeadAndTail(readable, 20)
    os.write(writable, b"first line" + b"-" * 100 + b"the end is")
    os.close(writable)
    kept = output.close()
    assert kept.startswith(b"first line")
    assert kept.endswith(b"the end is")
    assert b"100 bytes left out" in kept


async def test_short_stderr_is_kept_as_it_is() -> None:
    readable, writable = os.pipe()
    output = HeadAndTail(readable, 20)
    os.write(writable, b"fifteen letters")
    os.close(writable)
    assert output.close() == b"fifteen letters"


def make_box(limits: RunLimits = RunLimits()) -> tuple[Box, list[str], list[int]]:  # noqa: B008
    pairs = [os.pipe() for _ in range(3)]
    kills: list[str] = []
    stdout, stderr, report = (pair[0] for pair in pairs)
    spec = BoxSpec(runner="run", payload={}, limits=limits)
    box = Box(spec, ask=lambda: None, kill=lambda: kills.append("kill"), stdout=stdout, stderr=stderr, report=report)
    return box, kills, [pair[1] for pair in pairs]


async def test_the_first_reason_to_end_a_box_stands() -> None:
    box, kills, writers = make_box()
    box.end("memory")
    box.end("wall")
    for descriptor in writers:
        os.close(descriptor)
    assert kills == ["kill"]
    assert box.result(Ended()).ending == "memory"


async def test_a_box_is_ended_by_the_clock() -> None:
    box, kills, writers = make_box(RunLimits(wall_s=0.05))
    box.start_clock(asyncio.get_running_loop().time())
    await asyncio.sleep(0.1)
    for descriptor in writers:
        os.close(descriptor)
    assert kills == ["kill"]
    assert box.result(Ended()).ending == "wall"


async def test_sigxcpu_and_a_late_sigkill_are_the_cpu_limit() -> None:
    for status, cpu_s, ending in ((24, 1.0, "cpu"), (9, 2.0, "cpu"), (9, 0.1, "exit"), (0, 2.0, "exit")):
        box, _, writers = make_box(RunLimits(cpu_s=2.0))
        for descriptor in writers:
            os.close(descriptor)
        result = box.result(Ended(status=status, cpu_s=cpu_s))
        assert result.ending == ending
        assert (result.exit_code is None) == (ending != "exit")


async def test_a_box_that_vanished_was_killed_by_the_machine() -> None:
    box, _, writers = make_box()
    for descriptor in writers:
        os.close(descriptor)
    assert box.result(Ended()).ending == "killed"
