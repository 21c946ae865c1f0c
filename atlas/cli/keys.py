"""`atlas keys`: create, list, rotate and revoke API keys."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
import msgspec

from atlas.cli.options import json_option, read_settings, settings_options
from atlas.cli.store import ask_store
from atlas.types import Limits, Scope

if TYPE_CHECKING:
    from atlas.store import KeyInfo

SECONDS_PER_DAY = 86400.0


@click.group()
def keys() -> None:
    """Create, list, rotate and revoke API keys.

    \b
    Example:
      atlas keys create --name laptop
    """


@keys.command()
@click.option("--name", required=True, help="What the key is for.")
@click.option("--user", default="", help="Whose key it is: username, e-mail address or id; the owner by default.")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(get_args(Scope)), help="What it may do; repeat for several.")
@click.option("--model", "models", multiple=True, help="Model it may name; repeat for several, all by default.")
@click.option("--allow-remote", is_flag=True, help="Its requests may leave this machine, to the upstreams of [fallback].")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="Days until it expires; never by default.")
@click.option("--requests-per-minute", type=click.IntRange(min=1), help="Admitted requests within any 60 seconds.")
@click.option("--tokens-per-day", type=click.IntRange(min=1), help="Prompt and completion tokens per UTC day.")
@json_option
@settings_options
def create(
    name: str,
    user: str,
    scopes: tuple[Scope, ...],
    models: tuple[str, ...],
    allow_remote: bool,
    days: float | None,
    requests_per_minute: int | None,
    tokens_per_day: int | None,
    as_json: bool,
    config: Path | None,
    data_dir: str | None,
) -> None:
    """Make a key and print it, this once."""
    params: dict[str, Any] = {
        "name": name,
        "user": user,
        "scopes": scopes or None,
        "models": models or None,
        "allow_remote": allow_remote,
        "limits": Limits(requests_per_minute=requests_per_minute, tokens_per_day=tokens_per_day),
        "expires_at": time.time() + days * SECONDS_PER_DAY if days else None,
    }
    _show_once(ask_store(read_settings(config, data_dir), "keys.create", params), as_json=as_json)


@keys.command("list")
@json_option
@settings_options
def list_keys(as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """List keys: id, name, how it begins and ends, state."""
    found = ask_store(read_settings(config, data_dir), "keys.list")
    if as_json:
        print(json.dumps(found))
        return
    from atlas.store import KeyInfo  # half a second, for this list alone

    infos = msgspec.convert(found["keys"], list[KeyInfo])
    for info in infos:
        away = " (may leave this machine)" if info.allow_remote else ""
        print(f"{info.id}  {info.prefix}...{info.last4}  {_day(info.created_at)}  {_state(info):8}  {info.name}{away}")
    if not infos:
        print("No keys yet; `atlas keys create --name NAME` makes one.", file=sys.stderr)


@keys.command()
@click.argument("key_id", metavar="ID")
@click.option("--grace", "grace_s", type=click.FloatRange(min=0), default=0.0, help="Seconds the old key goes on working.")
@json_option
@settings_options
def rotate(key_id: str, grace_s: float, as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """Replace the key with this id by a new one of the same rights, and print that, this once."""
    made = ask_store(read_settings(config, data_dir), "keys.rotate", {"id": key_id, "grace_s": grace_s})
    _show_once(made, as_json=as_json)


@keys.command()
@click.argument("key_id", metavar="ID")
@json_option
@settings_options
def revoke(key_id: str, as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """Revoke the key with this id, at once and for good."""
    found = ask_store(read_settings(config, data_dir), "keys.revoke", {"id": key_id})
    if as_json:
        print(json.dumps(found))
    else:
        print(f"Key '{found['key']['name']}' is revoked.", file=sys.stderr)


def _show_once(made: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"key": made["key"]}))
        return
    print(made["key"])
    print(f"Key '{made['info']['name']}' is shown this once; ATLAS keeps only its hash.", file=sys.stderr)


def _day(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d")


def _state(info: KeyInfo) -> str:
    if info.revoked_at is not None:
        return "revoked"
    if not info.is_active:
        return "paused"
    return "valid" if info.is_valid(time.time()) else "expired"
