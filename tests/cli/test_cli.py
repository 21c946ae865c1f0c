from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import clean_environment, run_cli
from tests.engine.file_server import serving


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["version"],
        ["serve", "--help"],
        ["keys", "--help"],
        ["models", "--help"],
        ["ask", "--help"],
        ["connect", "--help"],
        ["doctor", "--help"],
    ],
)
def test_help_imports_neither_torch_nor_litestar_nor_llama_cpp(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom atlas.cli import main\n"
        f"sys.argv = ['atlas', *{arguments!r}]\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "assert 'click' in names\n"
        "print(sorted(names & {'torch', 'litestar', 'llama_cpp', 'transformers', 'uvicorn'}), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean_environment())
    assert run.stderr.strip() == "[]"


def test_keys_are_kept_without_a_server(tmp_path: Path) -> None:
    made = run_cli("keys", "create", "--name", "offline", "--json", "--allow-remote", ATLAS_HOME=str(tmp_path / "data"))
    assert json.loads(made.stdout)["key"].startswith("sk-llm-")
    listed = run_cli("keys", "list", ATLAS_HOME=str(tmp_path / "data"))
    assert "offline (may leave this machine)" in listed.stdout
    assert json.loads(made.stdout)["key"] not in listed.stdout


def test_a_created_key_is_the_only_thing_on_stdout(tmp_path: Path) -> None:
    made = run_cli("keys", "create", "--name", "k", "--data-dir", str(tmp_path / "data"))
    assert made.stdout.startswith("sk-llm-")
    assert made.stdout.count("\n") == 1
    assert "once" in made.stderr


def test_an_unknown_key_is_one_line_and_status_1(tmp_path: Path) -> None:
    run = run_cli("keys", "revoke", "key_nope", "--data-dir", str(tmp_path / "data"))
    assert run.returncode == 1
    assert run.stderr == "atlas: no key has the id 'key_nope'; `atlas keys list` shows them\n"
    assert run.stdout == ""


@pytest.mark.parametrize("arguments", [["keys", "create"], ["nonsense"], ["serve", "--port", "many"]])
def test_misuse_is_status_2(arguments: list[str]) -> None:
    run = run_cli(*arguments)
    assert run.returncode == 2
    assert run.stdout == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[engine]\nslotz = 3\n", "slotz"),
        ("[server]\nport = 70000\n", "port"),
        ("not toml", "atlas.toml"),
        ("server = 3", "server"),
    ],
)
def test_a_wrong_settings_file_is_explained_in_one_line(tmp_path: Path, text: str, expected: str) -> None:
    config = tmp_path / "atlas.toml"
    config.write_text(text)
    run = run_cli("serve", "--config", str(config), "--data-dir", str(tmp_path / "data"))
    assert run.returncode == 1
    assert expected in run.stderr
    assert run.stderr.count("\n") == 1


def test_version_as_json() -> None:
    assert json.loads(run_cli("version", "--json").stdout)["atlas"]


def test_models_are_added_listed_served_by_name_and_removed(tmp_path: Path) -> None:
    home = {"ATLAS_HOME": str(tmp_path / "data")}
    (tmp_path / "Mine.gguf").write_bytes(b"GGUF")
    assert run_cli("models", "add", str(tmp_path / "Mine.gguf"), **home).returncode == 0
    listed = {row["id"]: row for row in json.loads(run_cli("models", "list", "--json", **home).stdout)["models"]}
    assert listed["mine"]["state"] == "added"
    assert listed["qwen3-14b"]["state"] == "available"
    assert "mine" in run_cli("models", "list", **home).stdout
    assert json.loads(run_cli("models", "remove", "mine", "--json", **home).stdout)["model"]["id"] == "mine"
    assert (tmp_path / "Mine.gguf").exists()
    assert "mine" not in run_cli("models", "list", **home).stdout


def test_a_model_is_pulled_by_name_from_the_endpoint_named_in_the_environment(tmp_path: Path) -> None:
    with serving(b"GGUF" + bytes(100_000)) as source:
        pulled = run_cli("models", "pull", "qwen3-0.6b", "--json", ATLAS_HOME=str(tmp_path), HF_ENDPOINT=source.url)
    assert pulled.returncode == 0, pulled.stderr
    assert json.loads(pulled.stdout)["model"]["is_verified"] is True
    assert (tmp_path / "models" / "Qwen3-0.6B-Q8_0.gguf").stat().st_size == 100_004


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["models", "pull", "gpt-9"], "no model 'gpt-9'; known are "),
        (["models", "pull", "qwen3-4b"], "cannot reach 127.0.0.1"),
        (["models", "add", "none.gguf"], "none.gguf: No such file or directory"),
        (["models", "remove", "nano"], "nano is part of ATLAS"),
        (["serve", "--model", "gpt-9", "--port", "0"], "no model 'gpt-9'"),
        (["serve", "--model", "qwen3-8b", "--offline", "--port", "0"], "atlas models pull qwen3-8b"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_line(tmp_path: Path, arguments: list[str], expected: str) -> None:
    run = run_cli(*arguments, ATLAS_HOME=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9")
    assert run.returncode == 1
    assert expected in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
