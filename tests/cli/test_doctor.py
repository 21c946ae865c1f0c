from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from atlas.cli.doctor_sandbox import Found, Promise, check_layer, tell
from atlas.types import Layer
from tests.cli.conftest import RunningServer, run_cli

NO_SANDBOX = {"ATLAS_SANDBOX_PYTHON": "/nonexistent/python"}


def examine(*arguments: str, **environ: str) -> tuple[int, dict[str, dict[str, Any]]]:
    run = run_cli("doctor", "--json", *arguments, **environ)
    return run.returncode, {check["name"]: check for check in json.loads(run.stdout)["checks"]}


def serving(tmp_path: Path) -> dict[str, str]:
    """A sound set of settings: a model file, a free port, a fresh directory; no sandbox, which takes seconds to examine."""
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    return {"ATLAS_HOME": str(tmp_path / "data"), "ATLAS_ENGINE_MODEL": str(model), "ATLAS_SERVER_PORT": "0"} | NO_SANDBOX


def test_a_sound_machine_is_status_0_and_nothing_is_made(tmp_path: Path) -> None:
    status, checks = examine(**serving(tmp_path))
    assert status == 0, checks
    assert "llama-cpp-python" in checks["llama.cpp"]["detail"]
    assert not (tmp_path / "data").exists()


def test_a_busy_port_is_found(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, checks = examine(**{**serving(tmp_path), "ATLAS_SERVER_PORT": str(taken.getsockname()[1])})
    assert status == 1
    assert "in use by another program" in checks["port"]["detail"]


def test_a_missing_model_file_is_found(tmp_path: Path) -> None:
    environ = serving(tmp_path)
    (tmp_path / "m.gguf").unlink()
    status, checks = examine(**environ)
    assert status == 1
    assert checks["served model"]["status"] == "fail"


def test_a_damaged_ledger_is_found(tmp_path: Path) -> None:
    environ = serving(tmp_path)
    run_cli("keys", "create", "--name", "k", **environ)
    assert "1 valid keys" in examine(**environ)[1]["data directory"]["detail"]
    (tmp_path / "data" / "secrets" / "pepper").unlink()
    status, checks = examine(**environ)
    assert status == 1
    assert "pepper" in checks["data directory"]["detail"]


def test_a_gpu_that_lies_idle_is_a_warning(tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'RTX X, 1024, 2048'\n")
    tool.chmod(0o755)
    status, checks = examine(**serving(tmp_path), PATH=str(tool.parent))
    assert status == 0
    assert checks["gpu"]["status"] == "warn"
    assert "A GPU without nvcc" in checks["gpu"]["detail"]


def test_a_running_server_is_seen(server: RunningServer) -> None:
    run = server.cli("doctor", ATLAS_ENGINE_MODEL=str(server.data_dir.with_suffix(".gguf")), ATLAS_SERVER_PORT="0", **NO_SANDBOX)
    assert run.returncode == 0, run.stdout
    assert f"pid {server.process.pid} on 127.0.0.1" in run.stdout
    assert "held by a running server" in run.stdout


def test_the_sandbox_is_examined_layer_by_layer_and_its_promises_tried_out(tmp_path: Path) -> None:
    status, checks = examine(**{**serving(tmp_path), "ATLAS_SANDBOX_PYTHON": ""})
    assert status == 0, checks
    kept = re.search(r"tier (\w+); (\d+) of (\d+) promises kept; Python", checks["sandbox"]["detail"])
    assert kept, checks["sandbox"]
    assert kept[2] == kept[3]
    assert int(kept[3]) >= 50
    assert checks["seccomp"] == {"name": "seccomp", "status": "ok", "detail": "sandbox layer: holds"}


def test_code_that_would_be_refused_is_a_warning_with_the_cause(tmp_path: Path) -> None:
    status, checks = examine(**serving(tmp_path))
    assert status == 0
    assert checks["sandbox"]["status"] == "warn"
    assert "code is refused" in checks["sandbox"]["detail"]
    assert "/nonexistent/python" in checks["sandbox"]["detail"]


@pytest.mark.parametrize(
    ("layer", "status"),
    [
        (Layer(name="user namespaces", active=False, reason="AppArmor forbids them", remedy="sudo apparmor_parser"), "warn"),
        (Layer(name="bubblewrap", active=False, reason="not needed"), "ok"),
        (Layer(name="Landlock", active=True, reason="version 7"), "ok"),
    ],
)
def test_a_layer_that_can_be_had_is_told_with_the_command(layer: Layer, status: str) -> None:
    check = check_layer(layer)
    assert (check.name, check.status) == (layer.name, status)
    assert layer.reason in check.detail
    assert check.detail.endswith(layer.remedy)


def test_a_broken_promise_is_a_failure() -> None:
    found = Found(tier="native", reason="", layers=[], results=[Promise("no network", False, "connected")], languages=["Python"])
    assert [(check.status, check.detail) for check in tell(found)] == [
        ("ok", "tier native; 0 of 1 promises kept; Python"),
        ("fail", "no network: connected"),
    ]
