"""`atlas serve` with nothing replaced: the real engine on a tiny GGUF, and a remote engine in front of it."""

from __future__ import annotations

import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests import ggufs
from tests.cli.conftest import clean_environment, run_cli

KEY = "a preset key for tests"


@contextmanager
def serving(home: Path, *arguments: str, **environ: str) -> Iterator[str]:
    """Base URL of a server that runs meanwhile."""
    command = [sys.executable, "-m", "atlas", "serve", "--port", "0", "--data-dir", str(home), *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment(ATLAS_API_KEY=KEY, **environ)
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        readable, _, _ = select.select([process.stdout], [], [], 60)
        match = re.fullmatch(r"ATLAS ready on (\S+)\n", process.stdout.readline() if readable else "")
        assert match, process.stderr.read()
        yield match[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "My Model.gguf"
    shutil.copy(ggufs.tiny_scripted(), path)
    return path


def chat(url: str, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"}, timeout=30)


def test_a_model_file_is_served_by_path_and_a_remote_engine_stands_before_it(model: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "first", "--model", str(model)) as first:
        assert chat(first, "my-model").json()["choices"][0]["message"]["content"] == "Hello world!\n"
        remote = {"ATLAS_REMOTE_URL": f"{first}/v1", "ATLAS_REMOTE_KEY": KEY}
        with serving(tmp_path / "second", **remote) as second:
            assert chat(second, "my-model").json()["choices"][0]["message"]["content"] == "Hello world!\n"
            assert httpx.get(f"{second}/readyz").json()["status"] == "ready"


def test_a_registered_model_that_is_not_loaded_is_a_409(model: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    other = tmp_path / "other.gguf"
    shutil.copy(model, other)
    run_cli("models", "add", str(model), "--name", "mine", ATLAS_HOME=str(home))
    with serving(home, "--model", "mine") as url:
        run_cli("models", "add", str(other), ATLAS_HOME=str(home))
        assert chat(url, "mine").status_code == 200
        assert httpx.get(f"{url}/v1/models/other", headers={"x-api-key": KEY}).status_code == 200
        refused = chat(url, "other")
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "model_not_loaded"


def test_a_damaged_model_file_ends_the_server_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(ggufs.tiny_scripted().read_bytes()[:5000])
    run = run_cli("serve", "--model", str(path), "--port", "0", ATLAS_HOME=str(tmp_path / "data"), ATLAS_API_KEY=KEY)
    assert run.returncode == 1
    assert run.stdout == ""
    last = run.stderr.splitlines()[-1]
    assert last.startswith("atlas: ")
    assert "cut.gguf" in last
    assert "Traceback" not in run.stderr


def test_a_remote_engine_that_is_not_there_ends_the_server_in_one_line(tmp_path: Path) -> None:
    run = run_cli("serve", "--port", "0", ATLAS_HOME=str(tmp_path), ATLAS_API_KEY=KEY, ATLAS_REMOTE_URL="http://127.0.0.1:9/v1")
    assert run.returncode == 1
    assert "remote.url http://127.0.0.1:9/v1" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
