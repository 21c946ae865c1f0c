"""`atlas models`: what can be served, fetched, added and removed. A running server sees the changes at once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from atlas import control
from atlas.cli.options import find_directory, json_option, read_settings, settings_options
from atlas.engine import ModelRegistry
from atlas.errors import OperatorError
from atlas.settings import Settings

LOAD_TIMEOUT_S = 3600.0  # a large model from a slow disk, or the last of long answers


@click.group()
def models() -> None:
    """List, download, add and remove models.

    \b
    Example:
      atlas models pull qwen3-8b
    """


@models.command("list")
@json_option
@settings_options
def list_models(as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """List the models on this machine, then those that can be downloaded."""
    rows = _rows(find_registry(read_settings(config, data_dir)))
    if as_json:
        print(json.dumps({"models": rows}))
        return
    for row in rows:
        size = f"{row['size_bytes'] / 1e9:6.2f} GB" if row.get("size_bytes") else " " * 9
        print(f"{row['id']:16} {row['state']:10} {size}  {row.get('path') or row['about']}")


@models.command()
@click.argument("name", metavar="NAME|URL")
@json_option
@settings_options
def pull(name: str, as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """Download a model by name, or a GGUF file by its http(s) address; goes on where an earlier try ended."""
    registry = find_registry(read_settings(config, data_dir), create=True)
    print(f"Downloading {registry.url(name)}", file=sys.stderr)
    with download_progress(name.rsplit("/", 1)[-1]) as progress:
        model = registry.pull(name, progress=progress)
    checked = "agrees with its source" if model.is_verified else "recorded; its source names none"
    _print(model, as_json, f"{model.id}: {model.path}, sha256 {model.sha256} ({checked})")


@models.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", help="Name to serve it under; by default the file's.")
@json_option
@settings_options
def add(path: Path, name: str | None, as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """Register a GGUF file where it lies."""
    model = find_registry(read_settings(config, data_dir), create=True).add(path, name=name)
    _print(model, as_json, f"{model.id}: {model.path}; `atlas serve --model {model.id}` serves it")


@models.command()
@click.argument("name")
@json_option
@settings_options
def remove(name: str, as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """Forget a model; deletes the file if it was downloaded, leaves it if it was added."""
    model = find_registry(read_settings(config, data_dir), create=True).remove(name)
    _print(model, as_json, f"{model.id} is {'removed; its file stays' if model.url is None else 'deleted'}: {model.path}")


@models.command()
@click.argument("name")
@click.option("--instead-of", default="", help="A loaded model that goes first, when its answers are done.")
@json_option
@settings_options
def load(name: str, instead_of: str, as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """Load a model of this machine into the running server, beside what is loaded or instead of it."""
    found = _ask(read_settings(config, data_dir), "models.load", {"name": name, "instead_of": instead_of})
    _say(found, as_json, f"{found['model']} is loaded, with {found['context_tokens']} tokens of context")


@models.command()
@click.argument("name")
@json_option
@settings_options
def unload(name: str, as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """Unload a model of the running server: refused to new requests at once, freed when its answers are done."""
    found = _ask(read_settings(config, data_dir), "models.unload", {"name": name})
    _say(found, as_json, f"{found['model']} is unloaded")


def _ask(settings: Settings, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """The running server's answer, whenever it comes."""
    directory = find_directory(settings)
    try:
        found = control.call(directory.control_socket, method, params, timeout_s=LOAD_TIMEOUT_S)
    except (FileNotFoundError, ConnectionRefusedError):
        raise OperatorError(f"no server runs on {directory.path}; start one with `atlas serve --model NAME`") from None
    return dict(found)


def _say(found: dict[str, Any], as_json: bool, sentence: str) -> None:
    print(json.dumps(found) if as_json else sentence, file=sys.stdout if as_json else sys.stderr)


def find_registry(settings: Settings, *, create: bool = False) -> ModelRegistry:
    """The registry of the data directory these settings name; HF_ENDPOINT and HF_TOKEN as Hugging Face's own tools read them."""
    directory = find_directory(settings)
    if create:
        directory.create()
    return ModelRegistry(directory.models, endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get("HF_TOKEN"))


@contextmanager
def download_progress(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr once something is downloaded; away from a terminal click shows the label alone."""
    with ExitStack() as stack:
        bars: list[Any] = []  # click keeps the class of its bars to itself

        def show(have_bytes: int, total_bytes: int | None) -> None:
            if not bars:
                bars.append(stack.enter_context(click.progressbar(length=1, label=label, file=sys.stderr)))
            bars[0].length = total_bytes or have_bytes
            bars[0].update(have_bytes - bars[0].pos)

        yield show


def _rows(registry: ModelRegistry) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for model in registry.installed().values():
        state = "bundled" if model.id == "nano" else "downloaded" if model.url else "added"
        rows.append({"state": state, **msgspec.to_builtins(model)})
    here = {row["id"] for row in rows}
    rows += [
        {"id": name, "state": "available", "about": model.about} for name, model in registry.catalog.items() if name not in here
    ]
    return rows


def _print(model: msgspec.Struct, as_json: bool, sentence: str) -> None:
    if as_json:
        print(json.dumps({"model": msgspec.to_builtins(model)}))
    else:
        print(sentence, file=sys.stderr)
