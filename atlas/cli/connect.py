"""`atlas connect`: one round trip as the client would make it, then the client's own configuration file."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx

from atlas import control
from atlas.cli.client import TIMEOUT, Server, check, find_server, headers, talking
from atlas.cli.clients import CLIENTS, Client, Connection
from atlas.cli.options import find_directory, json_option, read_settings, settings_options
from atlas.directory import DataDirectory
from atlas.errors import OperatorError

SHOWN_KEY = "sk-llm-KEY"


@click.command()
@click.argument("client", type=click.Choice(list(CLIENTS)))
@click.option("--model", help="By default the loaded one.")
@click.option("--dry-run", is_flag=True, help="Show the file; write nothing, make no key.")
@json_option
@settings_options
def connect(client: str, model: str | None, dry_run: bool, as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """Point a coding agent at the running server: makes a key, tries it, writes the agent's configuration file.

    \b
    Example:
      atlas connect opencode --dry-run

    Other settings in the file stay as they are; the file as it was is kept beside it.
    """
    directory = find_directory(read_settings(config, data_dir))
    server = find_server(directory)
    chosen = CLIENTS[client]
    path = chosen.path(os.environ)
    wanted = model or server.model
    if wanted is None:
        raise OperatorError("the server is still loading its model; try again when it is ready")
    if dry_run:
        print(f"# {path}", file=sys.stderr)
        print(configured(chosen, path, Connection(server.url, SHOWN_KEY, wanted, 0)), end="")
        return
    configured(
        chosen, path, Connection(server.url, SHOWN_KEY, wanted, 0)
    )  # a file we cannot extend is found before a key is made
    with new_key(directory, server, client) as key:
        context_tokens = context_of(server, key, wanted)
        took_s = round_trip(server, chosen, key, wanted)
        backup = write(path, configured(chosen, path, Connection(server.url, key, wanted, context_tokens)))
    done = {"client": client, "path": str(path), "backup": backup, "model": wanted, "round_trip_s": round(took_s, 3)}
    report(done, chosen, as_json)


def configured(client: Client, path: Path, connection: Connection) -> str:
    """What the client's file shall hold.

    Raises:
        OperatorError: the file there cannot be read, or not extended.
    """
    try:
        return client.configure(path.read_text(encoding="utf-8") if path.exists() else "", connection)
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"{path}: {error}") from None
    except OperatorError as error:
        raise OperatorError(f"{path}: {error.message}") from None


@contextmanager
def new_key(directory: DataDirectory, server: Server, name: str) -> Iterator[str]:
    """A key for this client; revoked again if what follows fails, so that failed tries leave nothing behind."""
    if given := "none" if server.is_open else os.environ.get("ATLAS_API_KEY"):
        yield given
        return
    made = control.call(directory.control_socket, "keys.create", {"name": name})
    try:
        yield made["key"]
    except BaseException:
        control.call(directory.control_socket, "keys.revoke", {"id": made["info"]["id"]})
        raise


def context_of(server: Server, key: str, model: str) -> int:
    """The model's context in tokens, 0 if the server does not know it."""
    url = f"{server.url}/v1/models/{model}"
    with talking(url):
        reply = httpx.get(url, headers=headers(key), timeout=TIMEOUT, verify=server.verify)
    check(reply)
    return int(reply.json().get("context_length") or 0)


def round_trip(server: Server, client: Client, key: str, model: str) -> float:
    """One short request on the client's route; how long it took, in seconds.

    Raises:
        OperatorError: the server cannot be reached, or refused.
    """
    url = server.url + client.route
    start_s = time.monotonic()
    with talking(url):
        reply = httpx.post(url, json=_question(client.route, model), headers=headers(key), timeout=TIMEOUT, verify=server.verify)
    check(reply)
    return time.monotonic() - start_s


def _question(route: str, model: str) -> dict[str, Any]:
    if route == "/v1/responses":
        return {"model": model, "input": "Say hello.", "max_output_tokens": 16}
    return {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "Say hello."}]}


def write(path: Path, text: str) -> str | None:
    """Replace the file in one step, for its owner's eyes only since it holds a key; the old one is kept. Path of the copy."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = path.resolve()  # a dotfile is often a link into a repository of dotfiles
        backup = _backup(target)
        with tempfile.NamedTemporaryFile(
            "w", dir=target.parent, prefix=f".{target.name}.", encoding="utf-8", delete=False
        ) as file:
            file.write(text)  # tempfile's own mode is 0600
        Path(file.name).replace(target)
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}") from None
    return backup


def _backup(path: Path) -> str | None:
    if not path.exists():
        return None
    copy = path.with_name(f"{path.name}.{time.strftime('%Y%m%d-%H%M%S')}.bak")
    shutil.copy2(path, copy)
    return str(copy)


def report(done: dict[str, Any], client: Client, as_json: bool) -> None:
    if as_json:
        print(json.dumps(done))
        return
    print(f"Round trip: {done['model']} answered on {client.route} in {done['round_trip_s']} s.", file=sys.stderr)
    kept = f" (as it was: {done['backup']})" if done["backup"] else ""
    print(f"Wrote {done['path']}{kept}. Start: {client.start.format(model=done['model'])}", file=sys.stderr)
