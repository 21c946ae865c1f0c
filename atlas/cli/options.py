"""Options that several commands share, and the settings they amount to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from atlas.directory import DataDirectory
from atlas.settings import Settings, data_dir, load_settings

F = TypeVar("F", bound=Callable[..., Any])


def settings_options(command: F) -> F:
    """--config and --data-dir."""
    command = click.option("--config", type=click.Path(path_type=Path), help="Settings file (a copy of atlas.toml).")(command)
    return click.option("--data-dir", help="Where keys, models and the ledger live.")(command)


def json_option(command: F) -> F:
    """--json, as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def read_settings(config: Path | None, data_dir: str | None, **overrides: Any) -> Settings:  # values of any setting
    """atlas.toml, then the environment, then these flags (`server__port=` is server.port)."""
    dotted = {name.replace("__", "."): value for name, value in overrides.items()}
    return load_settings(config, os.environ, {"data_dir": data_dir, **dotted})


def find_directory(settings: Settings) -> DataDirectory:
    """The data directory these settings name; not created, not held."""
    return DataDirectory(data_dir(settings, os.environ))
