"""The suites: where they come from, which of their files are run, and how."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers import LLAMA_CPP_PYTHON
from benchmarks.sdists import unpacked
from tests.conformance.listed import Outcome
from tests.e2e.conftest import Running

REPOSITORY = Path(__file__).parents[2]
FIXTURES = Path(__file__).parent / "fixtures"
NANO = REPOSITORY / "models/nano/nano-q8_0.gguf"
KEY = "conformance-key-0123456789"
OPENAI_VERSION = "3.57.0"  # whose tests listed.toml and the model names below are about
TEST_TIMEOUT_S = 300  # of one test, with the start of its server and the loading of an embedding model; chosen


class Suite(NamedTuple):
    """Tests that others have published.

    Attributes:
        files: file of tests -> the name under which it asks for the loaded model.
        run: (file, model) -> what became of each test.
    """

    name: str
    files: Mapping[str, str]
    run: Callable[[str, str], dict[str, Outcome]]


def run_openai(file: str, model: str) -> dict[str, Outcome]:
    """openai-python's own tests of the resources, strict about the shape of every answer."""
    version = importlib.metadata.version("openai")
    if version != OPENAI_VERSION:
        print(f"openai {version} is installed; listed.toml was written for {OPENAI_VERSION}", file=sys.stderr)
    root = unpacked("openai", version)
    with serving(model) as url:
        environ = {
            "TEST_API_BASE_URL": f"{url}/v1",
            "CONFORMANCE_KEY": KEY,
            "PYTHONPATH": _path(FIXTURES, FIXTURES / "openai_python"),
        }
        return _pytest(root, f"tests/api_resources/{file}", ["-c", "pyproject.toml", "-p", "atlas_server"], environ)


def run_llama(file: str, model: str) -> dict[str, Outcome]:
    """llama-server's own tests; each of them starts a server, by our `utils` instead of theirs."""
    root = unpacked("llama-cpp-python", LLAMA_CPP_PYTHON) / "vendor/llama.cpp/tools/server/tests"
    environ = {"CONFORMANCE_MODEL": model, "PYTHONPATH": _path(FIXTURES, FIXTURES / "llama_server", root, REPOSITORY)}
    return _pytest(root, f"unit/{file}", ["-c", "pytest.ini", "--noconftest", "-p", "utils"], environ)


OPENAI = Suite(
    "openai-python",
    {
        "chat/test_completions.py": "gpt-6-astra",
        "test_completions.py": "gpt-3.5-turbo-instruct",
        "test_embeddings.py": "text-embedding-3-small",
        "test_models.py": "gpt-6-astra",
        "test_responses.py": "gpt-6-astra",
    },
    run_openai,
)
LLAMA = Suite(
    "llama-server",
    {
        "test_chat_completion.py": "gpt-3.5-turbo-instruct",
        "test_completion.py": "davinci-002",
        "test_tokenize.py": "nano",
        "test_compat_anthropic.py": "test",
        "test_compat_oai_responses.py": "gpt-4.1",
        "test_embedding.py": "text-embedding-3-small",
        "test_rerank.py": "nano",
        "test_security.py": "gpt-3.5-turbo",
        "test_template.py": "nano",
        "test_stream.py": "nano",
        "test_speculative.py": "nano",
        "test_lora.py": "nano",
    },
    run_llama,
)
SUITES = (OPENAI, LLAMA)


@contextmanager
def serving(model: str) -> Iterator[str]:
    """URL of `atlas serve` with the nano model under another name."""
    with tempfile.TemporaryDirectory(prefix="atlas-conformance-") as folder:
        server = start(Path(folder), model, environ={"ATLAS_API_KEY": KEY, "ATLAS_ENGINE_MAX_TOKENS": "64"})
        try:
            yield server.url
        finally:
            server.stop()


def start(folder: Path, model: str, *, template: Path | None = None, environ: Mapping[str, str]) -> Running:
    """`atlas serve` with nano's weights, under another name and with another chat template if need be."""
    file = folder / f"{model}.gguf"  # a model's id is its file's name
    if template is None:
        file.symlink_to(NANO)
    else:
        renew = ["-m", "gguf.scripts.gguf_new_metadata", "--force", "--chat-template-file", str(template)]
        subprocess.run([sys.executable, *renew, str(NANO), str(file)], check=True, capture_output=True)
    variables = {"ATLAS_TASKS_WORKERS": "0", "ATLAS_ENGINE_EMBEDDER": "model", **environ}
    return Running(folder / "home", str(file), **variables)


def _pytest(root: Path, file: str, arguments: list[str], environ: Mapping[str, str]) -> dict[str, Outcome]:
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as outcomes:
        options = ["-q", "-o", "addopts=", "-p", "outcomes", "-p", "no:cacheprovider", f"--timeout={TEST_TIMEOUT_S}"]
        command = [sys.executable, "-m", "pytest", *options, *arguments, file]
        # Without the suite's own folder in front, where llama-server's `utils` lies.
        variables = {**os.environ, **environ, "CONFORMANCE_OUTCOMES": outcomes.name, "PYTHONSAFEPATH": "1"}
        done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True)
        lines = [json.loads(line) for line in Path(outcomes.name).read_text().splitlines()]
    if not lines:
        raise SystemExit(f"{file}: no test was run\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return {line["name"]: Outcome(line["outcome"], line["why"]) for line in lines}


def _path(*folders: Path) -> str:
    return os.pathsep.join(map(str, folders))
