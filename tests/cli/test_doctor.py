from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from tests.cli.conftest import RunningServer, run_cli


def examine(*arguments: str, **environ: str) -> tuple[int, dict[str, dict[str, Any]]]:
    run = run_cli("doctor", "--json", *arguments, **environ)
    return run.returncode, {check["name"]: check for check in json.loads(run.stdout)["checks"]}


def serving(tmp_path: Path) -> dict[str, str]:
    """A sound set of settings: a model file, a free port, a fresh directory."""
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    return {"ATLAS_HOME": str(tmp_path / "data"), "ATLAS_ENGINE_MODEL": str(model), "ATLAS_SERVER_PORT": "0"}


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
    run = server.cli("doctor", ATLAS_ENGINE_MODEL=str(server.data_dir.with_suffix(".gguf")), ATLAS_SERVER_PORT="0")
    assert run.returncode == 0, run.stdout
    assert f"pid {server.process.pid} on 127.0.0.1" in run.stdout
    assert "held by a running server" in run.stdout
