"""`atlas keys`: through the running server if there is one, else on the data directory itself."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from atlas import control
from atlas.cli.options import find_directory, json_option, read_settings, settings_options
from atlas.errors import DataDirectoryBusy
from atlas.store import DataDirectory, KeyInfo, Store, open_store

RESTART_WAIT_S = 5.0
SECONDS_PER_DAY = 86400.0


@click.group()
def keys() -> None:
    """Create, list and revoke API keys.

    \b
    Example:
      atlas keys create --name laptop
    """


@keys.command()
@click.option("--name", required=True, help="What the key is for.")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="Days until it expires; never by default.")
@json_option
@settings_options
def create(name: str, days: float | None, as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """Make a key and print it, this once."""
    params: dict[str, Any] = {"name": name, "expires_at": time.time() + days * SECONDS_PER_DAY if days else None}
    made = on_store(
        find_directory(read_settings(config, data_dir)), "keys.create", params, lambda store: store.mint(**params)._asdict()
    )
    if as_json:
        print(json.dumps({"key": made["key"]}))
        return
    print(made["key"])
    print(f"Key '{name}' is shown this once; ATLAS keeps only its hash.", file=sys.stderr)


@keys.command("list")
@json_option
@settings_options
def list_keys(as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """List keys: id, name, how it begins and ends, state."""
    found = on_store(find_directory(read_settings(config, data_dir)), "keys.list", {}, lambda store: {"keys": store.list()})
    if as_json:
        print(json.dumps(found))
        return
    infos = msgspec.convert(found["keys"], list[KeyInfo])
    for info in infos:
        print(f"{info.id}  {info.prefix}...{info.last4}  {_day(info.created_at)}  {_state(info):8}  {info.name}")
    if not infos:
        print("No keys yet; `atlas keys create --name NAME` makes one.", file=sys.stderr)


@keys.command()
@click.argument("key_id", metavar="ID")
@json_option
@settings_options
def revoke(key_id: str, as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """Revoke the key with this id, at once and for good."""
    directory = find_directory(read_settings(config, data_dir))
    found = on_store(directory, "keys.revoke", {"id": key_id}, lambda store: {"key": store.revoke(key_id)})
    if as_json:
        print(json.dumps(found))
    else:
        print(f"Key '{found['key']['name']}' is revoked.", file=sys.stderr)


def on_store(directory: DataDirectory, method: str, params: dict[str, Any], work: Callable[[Store], Any]) -> Any:
    """`method` of the running server, or the same `work` on the directory itself; plain JSON values either way.

    Raises:
        OperatorError: refused, or the server holds the directory without answering.
    """
    deadline_s = time.monotonic() + RESTART_WAIT_S
    while True:
        try:
            return control.call(directory.control_socket, method, params)
        except (FileNotFoundError, ConnectionRefusedError):
            pass  # no server, or one that is just starting or stopping
        try:
            return _offline(directory, work)
        except DataDirectoryBusy:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)


def _offline(directory: DataDirectory, work: Callable[[Store], Any]) -> Any:
    directory.create().hold()
    try:
        store = open_store(directory)
        try:
            return msgspec.to_builtins(work(store))
        finally:
            store.close()
    finally:
        directory.release()


def _day(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d")


def _state(info: KeyInfo) -> str:
    if info.revoked_at is not None:
        return "revoked"
    return "valid" if info.is_valid(time.time()) else "expired"
