from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests import ggufs
from tests.cli.conftest import RunningServer, run_cli, wait_for

Launcher = Callable[..., RunningServer]


def open_stream(server: RunningServer) -> tuple[threading.Thread, threading.Event]:
    """A client reading a long stream; the event is set once it has received something."""
    started = threading.Event()

    def read() -> None:
        body = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        headers = {"authorization": f"Bearer {server.key}"}
        with (
            suppress(httpx.TransportError),
            httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=60) as response,
        ):
            for _ in response.iter_lines():
                started.set()

    thread = threading.Thread(target=read)
    thread.start()
    return thread, started


def test_serve_answers_chat_and_prints_one_line_on_stdout(server: RunningServer) -> None:
    reply = server.chat()
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"].startswith("one two three")
    server.process.send_signal(signal.SIGTERM)
    rest, _ = server.process.communicate(timeout=60)
    assert rest == ""
    assert server.process.returncode == 0


def test_stderr_says_how_to_connect(server: RunningServer) -> None:
    wait_for(lambda: "base URL" in server.stderr.read_text())
    text = server.stderr.read_text()
    assert f"{server.url}/v1" in text
    assert "curl" in text
    assert text.count(server.key) == 2  # the key, and the line that exports it


def test_a_wrong_key_is_refused(server: RunningServer) -> None:
    server.key = "sk-llm-wrong"
    assert server.chat().status_code == 401


def test_the_first_key_is_shown_once_and_still_works_after_a_restart(launch_server: Launcher) -> None:
    first = launch_server()
    first.wait_ready()
    first.process.send_signal(signal.SIGINT)
    first.process.wait(60)
    second = launch_server()
    second.wait_ready()
    assert second.key == ""
    second.key = first.key
    assert second.chat().status_code == 200


def test_a_preset_key_replaces_the_first_key(launch_server: Launcher) -> None:
    server = launch_server(ATLAS_API_KEY="correct horse battery")
    server.wait_ready()
    assert server.key == ""
    server.key = "correct horse battery"
    assert server.chat().status_code == 200


def test_a_short_preset_key_ends_the_server_in_one_line(launch_server: Launcher) -> None:
    server = launch_server(ATLAS_API_KEY="short")
    assert server.process.wait(60) == 1
    assert server.stderr.read_text() == "atlas: ATLAS_API_KEY has 5 characters; it needs at least 16\n"


def test_an_upstream_whose_key_is_missing_ends_the_server_in_one_line(launch_server: Launcher, tmp_path: Path) -> None:
    config = tmp_path / "own.toml"
    config.write_text('[fallback.upstreams.team]\nurl = "http://127.0.0.1:9/v1"\nkey_env = "NO_SUCH_KEY"\n')
    server = launch_server(CONFIG=str(config))
    assert server.process.wait(60) == 1
    assert server.stderr.read_text().endswith("the key of 'team' is in NO_SUCH_KEY, which is not set; export it\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
def test_a_killed_serving_process_is_replaced_and_keys_are_intact(server: RunningServer, number: signal.Signals) -> None:
    before = server.child
    os.kill(before, number)
    took_s = wait_for(lambda: server.is_ready() and server.child != before)
    assert took_s < 60
    assert server.chat().status_code == 200


def test_a_connection_made_during_a_restart_waits_and_is_answered(server: RunningServer) -> None:
    os.kill(server.child, signal.SIGKILL)
    assert httpx.get(f"{server.url}/livez", timeout=60).status_code == 200


def test_a_stream_is_cut_when_the_serving_process_dies(launch_server: Launcher) -> None:
    server = launch_server(SCRIPTED_DELAY_S="0.05")
    server.wait_ready()
    reader, started = open_stream(server)
    assert started.wait(60)
    os.kill(server.child, signal.SIGKILL)
    reader.join(60)
    assert not reader.is_alive()
    wait_for(server.is_ready)


def test_the_parent_gives_up_after_too_many_crashes(launch_server: Launcher) -> None:
    server = launch_server("server.restart_limit=2")
    server.wait_ready()
    for _ in range(3):
        wait_for(lambda: server.process.poll() is not None or server.is_ready())
        os.kill(server.child, signal.SIGKILL)
        time.sleep(0.05)
    assert server.process.wait(60) == 1
    assert "ended 3 times within 60 s, last with SIGKILL" in server.stderr.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_within_seconds_with_a_stream_open(launch_server: Launcher, number: signal.Signals) -> None:
    server = launch_server("server.drain_timeout_s=1.0", SCRIPTED_DELAY_S="0.1")
    server.wait_ready()
    reader, started = open_stream(server)
    assert started.wait(60)
    child = server.child
    server.process.send_signal(number)
    assert server.process.wait(30) == 0
    assert not Path(f"/proc/{child}").exists()
    reader.join(60)


def test_a_signal_ends_an_idle_server_at_once(server: RunningServer) -> None:
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(30) == 0


def test_a_second_ctrl_c_kills(launch_server: Launcher) -> None:
    server = launch_server("server.drain_timeout_s=100", SCRIPTED_DELAY_S="0.5")
    server.wait_ready()
    reader, started = open_stream(server)
    assert started.wait(60)
    server.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert server.process.poll() is None
    server.process.send_signal(signal.SIGINT)
    server.process.wait(30)
    reader.join(60)


def test_a_signal_while_the_model_loads_ends_the_server(launch_server: Launcher) -> None:
    server = launch_server(SCRIPTED_LOAD_S="60")
    wait_for(lambda: (server.data_dir / "secrets" / "jwt").exists())  # made once the ledger is open
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(8) == 0


def test_the_serving_process_ends_with_its_parent(server: RunningServer) -> None:
    child = server.child
    server.process.kill()
    wait_for(lambda: not Path(f"/proc/{child}").exists(), 60)


def test_readyz_says_loading_until_the_model_is_there(launch_server: Launcher, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = launch_server(f"server.port={port}", SCRIPTED_LOAD_S="2")
    server.url = f"http://127.0.0.1:{port}"
    seen: list[str] = []

    def loading() -> bool:
        with suppress(httpx.TransportError):
            seen.append(httpx.get(f"{server.url}/readyz", timeout=60).json()["status"])
        return "loading" in seen

    wait_for(loading)
    server.wait_ready()
    assert server.is_ready()


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_reason(launch_server: Launcher) -> None:
    server = launch_server(SCRIPTED_FAILURE="/models/x.gguf is not a GGUF file")
    assert server.process.wait(60) == 1
    assert "atlas: /models/x.gguf is not a GGUF file" in server.stderr.read_text()
    assert "Traceback" not in server.stderr.read_text()


def test_a_busy_port_is_named(launch_server: Launcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = launch_server(f"server.port={port}")
        assert server.process.wait(60) == 1
    assert server.stderr.read_text().startswith(f"atlas: port {port} on 127.0.0.1 is in use")


def test_a_second_server_on_the_same_directory_is_refused_by_name(server: RunningServer, launch_server: Launcher) -> None:
    second = RunningServer(server.data_dir)
    second.stderr = server.stderr
    assert second.process.wait(60) == 1
    second.stop()
    assert f"held by another ATLAS process (pid {server.process.pid})" in server.stderr.read_text()
    assert server.is_ready()


def test_an_address_others_can_reach_is_refused(launch_server: Launcher) -> None:
    server = launch_server("server.host=0.0.0.0")
    assert server.process.wait(60) == 1
    assert "--insecure-http" in server.stderr.read_text()


def test_an_address_others_can_reach_is_served_when_it_is_meant(launch_server: Launcher) -> None:
    server = launch_server("server.host=0.0.0.0", "server.insecure_http=true")
    server.wait_ready()
    assert server.chat().status_code == 200


def test_auth_off_stays_on_loopback(launch_server: Launcher, tmp_path: Path) -> None:
    refused = launch_server("server.host=0.0.0.0", "server.insecure_http=true", "auth.mode=off")
    assert refused.process.wait(60) == 1
    assert "loopback only" in refused.stderr.read_text()
    served = launch_server("auth.mode=off", data_dir=tmp_path / "open")
    served.wait_ready()
    served.key = "anything"
    assert served.chat().status_code == 200


def test_protocol_errors_close_the_connection_and_leave_the_server_up(server: RunningServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        received = b""
        while chunk := connection.recv(4096):
            received += chunk
    assert b"400" in received.split(b"\r\n")[0]
    assert server.is_ready()


def test_replies_do_not_name_the_server_software(server: RunningServer) -> None:
    assert "server" not in httpx.get(f"{server.url}/livez").headers


def test_keys_are_created_listed_and_revoked_through_the_running_server(server: RunningServer) -> None:
    made = server.cli("keys", "create", "--name", "laptop", "--json")
    assert made.returncode == 0, made.stderr
    assert made.stderr == ""
    server.key = json.loads(made.stdout)["key"]
    assert server.chat().status_code == 200
    listed = json.loads(server.cli("keys", "list", "--json").stdout)["keys"]
    [laptop] = [info for info in listed if info["name"] == "laptop"]
    assert server.cli("keys", "revoke", laptop["id"]).returncode == 0
    assert server.chat().status_code == 401


def test_models_are_loaded_and_unloaded_through_the_running_server(server: RunningServer) -> None:
    assert server.cli("models", "add", str(ggufs.tiny_calm()), "--name", "second").returncode == 0
    made = server.cli("models", "load", "second", "--json")
    assert (made.returncode, json.loads(made.stdout)["model"]) == (0, "second"), made.stderr
    assert server.chat(model="second").json()["model"] == "second"
    assert server.chat().json()["model"] == "scripted"
    refused = server.cli("models", "load", "no-such-model")
    assert (refused.returncode, refused.stderr.startswith("atlas: no model 'no-such-model'")) == (1, True)
    assert server.cli("models", "unload", "second").stderr == "second is unloaded\n"
    assert server.chat(model="second").status_code == 409


def test_loading_needs_a_running_server(tmp_path: Path) -> None:
    run = run_cli("models", "load", "nano", ATLAS_HOME=str(tmp_path / "data"))
    assert run.returncode == 1
    assert "no server runs on" in run.stderr
    assert "atlas serve --model NAME" in run.stderr


def test_keys_work_while_the_serving_process_restarts(server: RunningServer) -> None:
    os.kill(server.child, signal.SIGKILL)
    made = server.cli("keys", "create", "--name", "meanwhile", "--json")
    assert made.returncode == 0, made.stderr
    server.key = json.loads(made.stdout)["key"]
    assert server.chat().status_code == 200


def test_only_the_owner_may_open_the_control_socket(server: RunningServer) -> None:
    assert (server.data_dir / "atlas.sock").stat().st_mode & 0o777 == 0o600


def test_the_parent_imports_no_framework_and_no_model(server: RunningServer) -> None:
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    for name in ("libllama", "torch", "httptools", "uvloop"):
        assert name not in maps


def environment_of(server: RunningServer) -> str:
    """Of its serving process, as `:A=1:B=2:`; glibc itself has cut GLIBC_TUNABLES at its colons."""
    return ":" + Path(f"/proc/{server.child}/environ").read_text().replace("\0", ":")


def test_the_serving_process_asks_for_huge_pages_unless_the_operator_says_otherwise(
    launch_server: Launcher, tmp_path: Path
) -> None:
    asking, told = launch_server(), launch_server(data_dir=tmp_path / "told", GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
    for server in (asking, told):
        server.wait_ready()
    ask = ":GLIBC_TUNABLES=glibc.malloc.hugetlb=1:"
    assert ask in environment_of(asking)
    assert f"{ask}glibc.malloc.hugetlb" not in environment_of(asking)
    assert f"{ask}glibc.malloc.hugetlb=0:" in environment_of(told), "glibc takes the last"
