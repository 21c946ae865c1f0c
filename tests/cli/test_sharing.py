"""Users, usage, backup and restore on the command line, with and without a server."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.cli.conftest import RunningServer, run_cli, wait_for
from tests.ledgers import server_environ


def test_an_invitation_a_limit_and_a_reset_without_a_server(tmp_path: Path) -> None:
    home = {"ATLAS_HOME": str(tmp_path / "data")}
    link = run_cli("users", "invite", "--email", "ada@example.org", **home).stdout
    assert link.startswith("http://127.0.0.1:8000/register?token=")
    listed = json.loads(run_cli("users", "list", "--json", **home).stdout)
    assert [user["role"] for user in listed["users"]] == ["owner"]
    assert [invitation["email"] for invitation in listed["invitations"]] == ["ada@example.org"]
    owner = listed["users"][0]["id"]
    changed = run_cli("users", "update", owner, "--tokens-per-day", "500", "--json", **home)
    assert json.loads(changed.stdout)["user"]["limits"] == {"tokens_per_day": 500}
    assert "/reset?token=" in run_cli("users", "reset", owner, **home).stdout


def test_an_unknown_user_is_one_line_and_status_1(tmp_path: Path) -> None:
    run = run_cli("users", "reset", "nobody", ATLAS_HOME=str(tmp_path / "data"))
    assert run.returncode == 1
    assert run.stderr == "atlas: no user is called 'nobody'; `atlas users list` shows them\n"


def test_the_first_start_prints_a_link_and_later_ones_come_from_the_command(server: RunningServer) -> None:
    assert f"{server.url}/setup?token=" in server.stderr.read_text()
    link = server.cli("users", "setup").stdout.strip()
    assert httpx.get(link).status_code == 200


def test_a_key_made_on_the_command_line_carries_its_limits(server: RunningServer) -> None:
    server.key = server.cli("keys", "create", "--name", "one", "--requests-per-minute", "1").stdout.strip()
    assert server.chat().status_code == 200
    refused = server.chat()
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 0 < int(refused.headers["retry-after"]) <= 60


def test_rotate_gives_a_new_key_and_ends_the_old_one(server: RunningServer) -> None:
    [found] = json.loads(server.cli("keys", "list", "--json").stdout)["keys"]
    new, old = server.cli("keys", "rotate", found["id"]).stdout.strip(), server.key
    assert server.chat().status_code == 401
    server.key = new
    assert server.chat().status_code == 200
    assert new != old


def test_usage_is_printed_as_table_csv_and_json(server: RunningServer) -> None:
    for _ in range(3):
        assert server.chat().status_code == 200
    [total] = json.loads(server.cli("usage", "--by", "model", "--json").stdout)
    assert (total["group"], total["requests"]) == ("scripted", 3)
    rows = list(csv.DictReader(io.StringIO(server.cli("usage", "--by", "model", "--csv").stdout)))
    assert [row["completion_tokens"] for row in rows] == [str(total["completion_tokens"])]
    single = [json.loads(line) for line in server.cli("usage", "--requests").stdout.splitlines()]
    assert len({row["request_id"] for row in single}) == 3
    assert sum(row["completion_tokens"] for row in single) == total["completion_tokens"]
    assert server.cli("usage", "--by", "model").stdout.splitlines()[1].startswith("scripted")


def test_a_backup_of_a_running_server_restores_with_its_keys(
    server: RunningServer, launch_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    assert server.chat().status_code == 200
    backup = tmp_path / "backup.tar"
    written = server.cli("backup", str(backup))
    assert written.returncode == 0, written.stderr
    assert backup.stat().st_mode & 0o777 == 0o600
    again = server.cli("backup", str(backup))
    assert (again.returncode, "exists" in again.stderr) == (1, True)

    place = tmp_path / "restored"
    restored = run_cli("restore", str(backup), "--data-dir", str(place), **server_environ(place))
    assert restored.returncode == 0, restored.stderr
    second = launch_server(data_dir=place)
    second.wait_ready()
    second.key = server.key
    assert second.chat().status_code == 200
    [total] = json.loads(second.cli("usage", "--by", "model", "--json").stdout)
    assert total["requests"] == 2


def test_sighup_takes_over_limits_and_a_bad_file_changes_nothing(
    launch_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    config = tmp_path / "atlas.toml"
    config.write_text("")
    server = launch_server(CONFIG=str(config))
    server.wait_ready()
    assert [server.chat().status_code for _ in range(2)] == [200, 200]
    config.write_text("[limits]\nrequests_per_minute = 1\n")
    server.process.send_signal(1)
    wait_for(lambda: "settings.reloaded" in server.stderr.read_text())
    assert [server.chat().status_code for _ in range(2)] == [200, 429]  # a window that is limited now counts from now on
    config.write_text("[limits]\nrequests_per_minute = 'many'\n")
    server.process.send_signal(1)
    wait_for(lambda: "settings.not_reloaded" in server.stderr.read_text())
    time.sleep(0.1)
    assert server.chat().status_code == 429
