"""A coding agent as people run it, against a running server. Slow: the agent is 180 MB from npm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import ggufs
from tests.e2e.conftest import KEY, Running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CONTEXT_TOKENS = 65536  # OpenCode's system prompt and tools are 31,000 bytes, which are as many tokens of this model


@pytest.fixture(scope="module")
def opencode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    npm = shutil.which("npm")
    assert npm, "install Node.js and npm"
    folder = tmp_path_factory.mktemp("opencode")
    subprocess.run([npm, "install", "--prefix", str(folder), "opencode-ai"], check=True, capture_output=True, timeout=600)
    subprocess.run(["node", "postinstall.mjs"], check=True, capture_output=True, cwd=folder / "node_modules/opencode-ai")
    return folder / "node_modules/.bin/opencode"


@pytest.fixture(scope="module")
def server(serve: Callable[..., Running]) -> Running:
    path = ggufs.session_folder() / "agent.gguf"
    ggufs.scripted_gguf(path, {"\n": ggufs.ANSWER, "\t": "Done."}, context_tokens=CONTEXT_TOKENS)
    return serve(path, ATLAS_ENGINE_CONTEXT_TOKENS=str(CONTEXT_TOKENS))


def test_opencode_gets_an_answer(opencode: Path, server: Running, tmp_path: Path) -> None:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "ATLAS",
        "options": {"baseURL": f"{server.url}/v1", "apiKey": KEY},
        "models": {"agent": {"name": "agent"}},
    }
    config = tmp_path / "opencode.json"
    config.write_text(json.dumps({"provider": {"atlas": provider}, "model": "atlas/agent"}))
    environ = {**os.environ, "HOME": str(tmp_path / "home"), "PWD": str(tmp_path), "OPENCODE_CONFIG": str(config)}
    command = [str(opencode), "run", "--model", "atlas/agent", "say hello"]
    result = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert "Hello world!" in result.stdout, result.stderr
