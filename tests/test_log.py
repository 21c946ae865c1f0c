"""Run in processes of their own: logging is set up once per process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atlas.log import RecentLines

SETUP = "import structlog, logging; from atlas.log import configure_logging\nlog = structlog.get_logger('atlas.x')\n"


def stderr_of(code: str) -> str:
    return subprocess.run([sys.executable, "-c", SETUP + code], capture_output=True, text=True, check=True).stderr


def test_a_pipe_gets_json_lines() -> None:
    event = json.loads(stderr_of("configure_logging('info')\nlog.info('chat.completed', tokens=3)"))
    assert (event["event"], event["tokens"], event["level"]) == ("chat.completed", 3, "info")


def test_events_below_the_level_are_left_out() -> None:
    assert stderr_of("configure_logging('warning')\nlog.info('chat.completed')") == ""


def test_secrets_are_cut_out_by_shape_and_by_name() -> None:
    line = stderr_of(
        "configure_logging('info', form='json')\n"
        "log.info('x', header='Bearer abc.def', url='/?k=sk-llm-AAAA9', body={'password': 'hunter2', 'api_key': 'k1234'}, "
        "items=['sk-llm-BBBB9'], prompt_tokens=7, jwt='eyJhbGciOi.eyJzdWI.c2ln', link='/setup?token=DDDD9&x=1', "
        "again='AUTHORIZATION: BEARER EEEE9')"
    )
    for secret in ("abc.def", "AAAA9", "hunter2", "k1234", "BBBB9", "eyJzdWI", "c2ln", "DDDD9", "EEEE9"):
        assert secret not in line
    assert json.loads(line)["prompt_tokens"] == 7


def test_secrets_are_cut_out_of_tracebacks_and_locals_are_not_shown() -> None:
    code = (
        "configure_logging('info', form='{}')\ntail = chr(67) * 4\n"
        "try: raise ValueError('bad sk-llm-' + tail)\nexcept ValueError: log.exception('engine.failed', a=1)"
    )
    for form in ("json", "console"):
        line = stderr_of(code.format(form))
        assert "ValueError" in line
        assert "CCCC" not in line


def test_warnings_of_libraries_take_the_same_form() -> None:
    event = json.loads(stderr_of("configure_logging('info')\nlogging.getLogger('uvicorn.error').warning('odd %s', 'thing')"))
    assert event["event"] == "odd thing"


def test_the_latest_lines_are_kept_redacted_and_bounded() -> None:
    code = (
        "from atlas.log import MAX_RECENT, RECENT\nconfigure_logging('info', form='json')\n"
        "for number in range(MAX_RECENT + 10): log.info('x', number=number, password='hunter2', text='y' * 9000)\n"
        "log.debug('unseen')\nlogging.getLogger('uvicorn.error').warning('sk-llm-AAAA9')\n"
        "lines = RECENT.lines()\nassert len(lines) == MAX_RECENT\nassert lines[-2]['number'] == MAX_RECENT + 9\n"
        "assert lines[-1]['event'] == '[redacted]' and RECENT.lines(1) == lines[-1:]\n"
        "assert set(lines[0]) == {'timestamp', 'level', 'event', 'number', 'password', 'text'}\n"
        "assert lines[0]['password'] == '[redacted]' and len(lines[0]['text']) == 4000"
    )
    assert stderr_of(code).count("\n") == 2011


async def test_readers_hear_of_new_lines() -> None:
    recent = RecentLines(2)
    ticks = recent.changes()
    assert await anext(ticks) == 0
    for number in range(3):
        recent.keep(None, "info", {"number": number, "_record": object()})
    assert await anext(ticks) == 3
    assert recent.lines() == [{"number": 1}, {"number": 2}]


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_log_on_a_full_disk_fails_nothing(unbuffered: str) -> None:
    environ = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    script = SETUP + "configure_logging('info', form='json')\nlog.info('lost')\nlogging.warning('lost too')\nprint('goes on')"
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=full, text=True, check=True, env=environ
        )
    assert done.stdout == "goes on\n"


def test_a_line_is_written_in_one_piece() -> None:
    """Other processes write to the same stderr; a pipe of packets keeps apart what was written apart."""
    reader, writer = os.pipe2(os.O_DIRECT)
    script = SETUP + "configure_logging('info', form='json')\nlog.info('one', a=1)\nlogging.warning('two')"
    subprocess.run([sys.executable, "-c", script], stderr=writer, check=True)
    os.close(writer)
    pieces = [os.read(reader, 65536) for _ in range(2)]
    assert [json.loads(piece)["event"] for piece in pieces] == ["one", "two"]
    assert all(piece.endswith(b"\n") for piece in pieces)
    os.close(reader)
