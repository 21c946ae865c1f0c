"""`ask` and `connect` against a running server with a scripted engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from openai import OpenAI

from atlas.cli.clients import CLIENTS, Connection
from atlas.errors import OperatorError
from tests.cli.conftest import RunningServer, clean_environment, run_cli

ANSWER = "one two three " * 100
CONNECTION = Connection("http://127.0.0.1:8000", "sk-llm-x", "nano", 2048)


def test_ask_prints_the_answer_alone_on_stdout(server: RunningServer) -> None:
    asked = server.cli("ask", "what", "comes", "next?")
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.split() == ANSWER.split()
    assert asked.stderr == ""


def test_ask_needs_no_key_and_makes_one_only_once(server: RunningServer) -> None:
    for _ in range(2):
        assert server.cli("ask", "hi").returncode == 0
    names = [info["name"] for info in json.loads(server.cli("keys", "list", "--json").stdout)["keys"]]
    assert names == ["first key", "command line"]
    assert (server.data_dir / "secrets" / "command-line-key").stat().st_mode & 0o777 == 0o600


def test_ask_makes_a_new_key_when_its_own_was_revoked(server: RunningServer) -> None:
    server.cli("ask", "hi")
    keys = json.loads(server.cli("keys", "list", "--json").stdout)["keys"]
    server.cli("keys", "revoke", keys[-1]["id"])
    assert server.cli("ask", "hi").returncode == 0


def test_ask_as_json_gives_answer_and_usage(server: RunningServer) -> None:
    answer = json.loads(server.cli("ask", "--json", "--max-tokens", "5", "hi").stdout)
    assert answer["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["model"] == "scripted"


def test_reasoning_goes_to_stderr(launch_server: Callable[..., RunningServer]) -> None:
    server = launch_server(SCRIPTED_REPLY="<think>\nhm\n</think>\n\nforty two")
    server.wait_ready()
    asked = server.cli("ask", "hi")
    assert asked.stdout.strip() == "forty two"
    assert asked.stderr.strip() == "hm"


def test_a_question_can_be_piped_in(server: RunningServer) -> None:
    assert run_cli("ask", stdin="a long traceback", ATLAS_HOME=str(server.data_dir)).returncode == 0
    empty = run_cli("ask", ATLAS_HOME=str(server.data_dir))
    assert empty.returncode == 2
    assert "nothing to ask" in empty.stderr


def test_ask_with_a_wrong_key_or_model_repeats_the_servers_sentence(server: RunningServer) -> None:
    refused = server.cli("ask", "hi", ATLAS_API_KEY="sk-llm-wrong")
    assert refused.returncode == 1
    assert "HTTP 401" in refused.stderr
    unknown = server.cli("ask", "--model", "gpt-9", "hi")
    assert unknown.returncode == 1
    assert "HTTP 404" in unknown.stderr
    assert "scripted" in unknown.stderr


def test_ask_without_a_server_says_how_to_start_one(tmp_path: Path) -> None:
    run = run_cli("ask", "hi", ATLAS_HOME=str(tmp_path))
    assert run.returncode == 1
    assert run.stderr == f"atlas: no server runs on {tmp_path}; start one with `atlas serve`\n"


def test_an_answer_that_breaks_off_is_a_failure(launch_server: Callable[..., RunningServer]) -> None:
    server = launch_server(SCRIPTED_DELAY_S="0.05")
    server.wait_ready()
    asking = subprocess.Popen(
        [sys.executable, "-m", "atlas", "ask", "hi"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(ATLAS_HOME=str(server.data_dir)),
    )
    assert asking.stdout is not None
    assert asking.stdout.read(3) == "one"
    os.kill(server.child, signal.SIGKILL)
    _, errors = asking.communicate(timeout=60)
    assert asking.returncode == 1
    assert errors.startswith("atlas: ")
    assert "Traceback" not in errors


def connected(server: RunningServer, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return server.cli("connect", *arguments, HOME=str(home))


def test_connect_writes_the_clients_file_and_its_key_works(server: RunningServer, tmp_path: Path) -> None:
    run = connected(server, tmp_path, "opencode")
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    assert "scripted answered on /v1/chat/completions" in run.stderr
    path = tmp_path / ".config" / "opencode" / "opencode.json"
    provider = json.loads(path.read_text())["provider"]["atlas"]
    assert provider["options"]["baseURL"] == f"{server.url}/v1"
    assert provider["models"]["scripted"]["limit"]["context"] == 4096
    server.key = provider["options"]["apiKey"]
    assert server.chat().status_code == 200
    assert path.stat().st_mode & 0o777 == 0o600


def test_connect_keeps_everything_else_and_a_copy(server: RunningServer, tmp_path: Path) -> None:
    path = tmp_path / ".claude" / "settings.json"
    path.parent.mkdir()
    before = {"permissions": {"allow": ["Bash(ls)"]}, "env": {"EDITOR": "vi"}, "model": "opus"}
    path.write_text(json.dumps(before))
    run = connected(server, tmp_path, "claude", "--json")
    assert run.returncode == 0, run.stderr
    after = json.loads(path.read_text())
    assert after["permissions"] == before["permissions"]
    assert after["model"] == "opus"
    assert after["env"]["EDITOR"] == "vi"
    assert after["env"]["ANTHROPIC_BASE_URL"] == server.url
    assert json.loads(Path(json.loads(run.stdout)["backup"]).read_text()) == before


def test_connect_follows_a_linked_dotfile(server: RunningServer, tmp_path: Path) -> None:
    kept = tmp_path / "dotfiles" / "aider.yml"
    kept.parent.mkdir()
    kept.write_text("# mine\ndark-mode: true\n")
    (tmp_path / ".aider.conf.yml").symlink_to(kept)
    assert connected(server, tmp_path, "aider").returncode == 0
    assert (tmp_path / ".aider.conf.yml").is_symlink()
    assert kept.read_text().startswith("# mine\ndark-mode: true\n")


def test_dry_run_shows_the_file_and_changes_nothing(server: RunningServer, tmp_path: Path) -> None:
    run = connected(server, tmp_path, "codex", "--dry-run")
    assert run.returncode == 0, run.stderr
    assert tomllib.loads(run.stdout)["model_providers"]["atlas"]["base_url"] == f"{server.url}/v1"
    assert not (tmp_path / ".codex").exists()
    assert len(json.loads(server.cli("keys", "list", "--json").stdout)["keys"]) == 1


def test_connect_that_fails_writes_nothing_and_leaves_no_key(server: RunningServer, tmp_path: Path) -> None:
    run = connected(server, tmp_path, "aider", "--model", "gpt-9")
    assert run.returncode == 1
    assert "gpt-9" in run.stderr
    assert not (tmp_path / ".aider.conf.yml").exists()
    keys = json.loads(server.cli("keys", "list", "--json").stdout)["keys"]
    assert [key["revoked_at"] is None for key in keys] == [True, False]


def test_connect_leaves_a_file_it_cannot_read_alone(server: RunningServer, tmp_path: Path) -> None:
    path = tmp_path / ".config" / "opencode" / "opencode.json"
    path.parent.mkdir(parents=True)
    path.write_text("{ // mine\n}")
    run = connected(server, tmp_path, "opencode")
    assert run.returncode == 1
    assert f"{path}: the file is not plain JSON" in run.stderr
    assert path.read_text() == "{ // mine\n}"


def test_every_client_gets_the_same_file_when_connected_again() -> None:
    for client in CLIENTS.values():
        once = client.configure("", CONNECTION)
        assert client.configure(once, CONNECTION) == once


def test_aider_lines_are_replaced_in_place() -> None:
    text = "# mine\nmodel: gpt-4o\nopenai-api-key: old # secret\nread:\n  - a.md\n"
    assert CLIENTS["aider"].configure(text, CONNECTION) == (
        '# mine\nmodel: "openai/nano"\nopenai-api-key: "sk-llm-x"\nread:\n  - a.md\nopenai-api-base: "http://127.0.0.1:8000/v1"\n'
    )


def test_codex_tables_are_replaced_in_place_and_comments_stay() -> None:
    text = (
        'model = "gpt-5"  # mine\n\n[model_providers.atlas]\nbase_url = "old"\nwire_api = "chat"\n\n[tui]\nnotifications = true\n'
    )
    after = CLIENTS["codex"].configure(text, CONNECTION)
    document = tomllib.loads(after)
    assert document["model"] == "gpt-5"
    assert document["tui"] == {"notifications": True}
    assert document["model_providers"]["atlas"]["wire_api"] == "responses"
    assert "model_provider" not in document
    assert "# mine" in after


def test_codex_gets_a_default_model_only_where_there_is_none() -> None:
    text = "# mine\n\n[tui]\nnotifications = true\n\n[mcp_servers.model]\nmodel = 'x'\n"
    once = CLIENTS["codex"].configure(text, CONNECTION)
    assert text in once
    other = CLIENTS["codex"].configure(once, CONNECTION._replace(model="qwen3-8b", context_tokens=4096))
    assert other.count("atlas") == once.count("atlas")
    document = tomllib.loads(other)
    assert (document["model"], document["model_provider"], document["model_context_window"]) == ("qwen3-8b", "atlas", 4096)
    assert document["mcp_servers"] == {"model": {"model": "x"}}


def test_connect_codex_asks_over_the_responses_api(server: RunningServer, tmp_path: Path) -> None:
    path = tmp_path / ".codex" / "config.toml"
    path.parent.mkdir()
    path.write_text('model = "gpt-5"  # mine\n')
    run = connected(server, tmp_path, "codex")
    assert run.returncode == 0, run.stderr
    assert "scripted answered on /v1/responses" in run.stderr
    assert "codex -c model_provider=atlas -m scripted" in run.stderr
    assert path.read_text().startswith('model = "gpt-5"  # mine\n')
    provider = tomllib.loads(path.read_text())["model_providers"]["atlas"]
    assert provider["wire_api"] == "responses"
    with OpenAI(base_url=provider["base_url"], api_key=provider["experimental_bearer_token"], max_retries=0) as client:
        assert client.responses.create(model="scripted", input="hi").output_text.split() == ANSWER.split()


def test_a_codex_file_that_cannot_be_extended_is_refused() -> None:
    with pytest.raises(OperatorError, match="not TOML we can extend"):
        CLIENTS["codex"].configure('model_providers = "mine"\n', CONNECTION)
    with pytest.raises(OperatorError, match="not TOML we can extend"):
        CLIENTS["codex"].configure("nonsense", CONNECTION)
