"""`--model auto` on a machine that looks as if it had a GPU: a driver that answers, and a CUDA build of llama.cpp."""

from __future__ import annotations

import json
import os
import pty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import RunningServer, wait_for
from tests.engine.file_server import FileServer, serving

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu(tmp_path: Path) -> dict[str, str]:
    """Environment of such a machine. The scripted serving process never loads llama.cpp."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'RTX X, 20000, 24000'\n")
    tool.chmod(0o755)
    build = tmp_path / "site" / "llama_cpp" / "lib"
    build.mkdir(parents=True)
    (build.parent / "__init__.py").touch()
    (build / "libggml-cuda.so").touch()
    return {"PATH": f"{tool.parent}:{os.environ['PATH']}", "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}


@pytest.fixture
def source() -> Iterator[FileServer]:
    with serving(b"GGUF" + bytes(100_000)) as server:
        yield server


def test_a_person_at_the_terminal_is_asked_then_the_model_is_fetched_and_served(
    launch_server: Callable[..., RunningServer], gpu: dict[str, str], source: FileServer
) -> None:
    person, terminal = pty.openpty()
    server = launch_server("engine.model=auto", stdin=terminal, HF_ENDPOINT=source.url, **gpu)
    wait_for(lambda: "Download qwen3-14b from Qwen/Qwen3-14B-GGUF (0.0 GB)? [Y/n]" in server.stderr.read_text())
    assert not (server.data_dir / "models" / "registry.json").exists()
    os.write(person, b"y\n")
    server.wait_ready()
    os.close(person)
    os.close(terminal)
    assert json.loads((server.data_dir / "models" / "registry.json").read_text())["qwen3-14b"]["is_verified"] is True


def test_nobody_to_ask_means_no_download(
    launch_server: Callable[..., RunningServer], gpu: dict[str, str], source: FileServer
) -> None:
    server = launch_server("engine.model=auto", HF_ENDPOINT=source.url, **gpu)
    wait_for(lambda: server.process.poll() is not None or "atlas models pull qwen3-14b" in server.stderr.read_text())
    assert {method for method, *_ in source.requests} == {"HEAD"}


def test_a_download_that_fails_ends_the_start_in_one_line(
    launch_server: Callable[..., RunningServer], gpu: dict[str, str], source: FileServer
) -> None:
    source.status = 404
    server = launch_server("engine.model=qwen3-8b", HF_ENDPOINT=source.url, **gpu)
    assert server.process.wait(60) == 1
    assert "HTTP 404, there is no such file" in server.stderr.read_text().splitlines()[-1]
