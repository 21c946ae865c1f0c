from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import clean_environment, run_cli


@pytest.mark.parametrize("arguments", [["--help"], ["version"], ["serve", "--help"], ["keys", "--help"]])
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
    made = run_cli("keys", "create", "--name", "offline", "--json", ATLAS_HOME=str(tmp_path / "data"))
    assert json.loads(made.stdout)["key"].startswith("sk-llm-")
    listed = run_cli("keys", "list", ATLAS_HOME=str(tmp_path / "data"))
    assert "offline" in listed.stdout
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
