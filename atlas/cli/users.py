"""`atlas users`: who may sign in, and what they may use."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from atlas import control
from atlas.cli.options import find_directory, json_option, read_settings, settings_options
from atlas.cli.store import ask_store
from atlas.settings import Settings
from atlas.types import Limits, User, UserRole


@click.group()
def users() -> None:
    """Invite, list and change users.

    \b
    Example:
      atlas users invite --email ada@example.org
    """


@users.command("list")
@json_option
@settings_options
def list_users(as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """List users: id, role, state, name."""
    found = ask_store(read_settings(config, data_dir), "users.list")
    if as_json:
        print(json.dumps(found))
        return
    for user in msgspec.convert(found["users"], list[User]):
        print(f"{user.id}  {user.role:6}  {_state(user):10}  {user.username}  {user.email}".rstrip())
    print(f"{len(found['invitations'])} open invitations", file=sys.stderr)


@users.command()
@click.option("--email", default="", help="Whom it is for; shown to admins only.")
@click.option("--role", type=click.Choice(["member", "admin"]), default="member", show_default=True)
@json_option
@settings_options
def invite(email: str, role: str, as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """Print a link with which one person can make an account."""
    _show_link(read_settings(config, data_dir), "users.invite", {"email": email, "role": role}, as_json=as_json)


@users.command()
@click.argument("user")
@json_option
@settings_options
def reset(user: str, as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """Print a link with which USER can choose a new password."""
    _show_link(read_settings(config, data_dir), "users.reset", {"user": user}, as_json=as_json)


@users.command()
@json_option
@settings_options
def setup(as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """Print a fresh link for the first sign-in, with which the owner's account is set up."""
    _show_link(read_settings(config, data_dir), "users.setup", {}, as_json=as_json)


@users.command()
@click.argument("user")
@click.option("--role", type=click.Choice(get_args(UserRole)))
@click.option("--disable/--enable", "disabled", default=None, help="Refuse, or accept again, everything of this user.")
@click.option("--requests-per-minute", type=click.IntRange(min=1))
@click.option("--tokens-per-minute", type=click.IntRange(min=1))
@click.option("--concurrency", type=click.IntRange(min=1))
@click.option("--tokens-per-day", type=click.IntRange(min=1))
@click.option("--tokens-per-month", type=click.IntRange(min=1))
@json_option
@settings_options
def update(
    user: str,
    role: str | None,
    disabled: bool | None,
    as_json: bool,
    config: Path | None,
    data_dir: str | None,
    **limits: int | None,
) -> None:
    """Change a user's role, limits or state. A limit that is named replaces all limits of the user."""
    given = Limits(**limits) if any(limits.values()) else None
    params = {"user": user, "role": role, "disabled": disabled, "limits": given}
    changed = ask_store(read_settings(config, data_dir), "users.update", params)
    if as_json:
        print(json.dumps(changed))
    else:
        print(f"User '{changed['user'].get('username', '')}' is changed.", file=sys.stderr)


def _show_link(settings: Settings, method: str, params: dict[str, Any], *, as_json: bool) -> None:
    found = ask_store(settings, method, params)
    if found["path"] is None:
        print("The owner's account is set up already; sign in, or `atlas users reset USER`.", file=sys.stderr)
        sys.exit(1)
    link = base_url(settings) + found["path"]
    print(json.dumps({**found, "url": link}) if as_json else link)


def base_url(settings: Settings) -> str:
    """Where the running server is; without one, where these settings would have it."""
    try:
        status = control.call(find_directory(settings).control_socket, "status")
        return str(status["url"])
    except (FileNotFoundError, ConnectionRefusedError):
        return settings.server.url


def _state(user: User) -> str:
    if user.disabled_at is not None:
        return "disabled"
    return "active" if user.is_ready else "not set up"
