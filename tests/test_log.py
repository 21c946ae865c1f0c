"""Run in processes of their own: logging is set up once per process."""

from __future__ import annotations

import json
import subprocess
import sys

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
        "items=['sk-llm-BBBB9'], prompt_tokens=7)"
    )
    for secret in ("abc.def", "AAAA9", "hunter2", "k1234", "BBBB9"):
        assert secret not in line
    assert '"prompt_tokens": 7' in line


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
