"""`atlas backup` and `atlas restore`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from atlas import control
from atlas.cli.options import find_directory, read_settings, settings_options
from atlas.store import restore_backup, write_backup


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@settings_options
def backup(file: Path, config: Path | None, data_dir: str | None) -> None:
    """Write ledger, live state, blobs and secrets to FILE, a tar archive; the server may run.

    Whoever has FILE has your keys' hashes and your certificates: keep it as you keep the data directory.
    """
    settings = read_settings(config, data_dir)
    directory = find_directory(settings)
    target = file.absolute()
    try:
        done = control.call(directory.control_socket, "backup", {"target": str(target)}, timeout_s=3600.0)
        count = done["files"]
    except (FileNotFoundError, ConnectionRefusedError):
        directory.create().hold()
        try:
            count = len(write_backup(directory, target, ledger_url=settings.ledger.url).files)
        finally:
            directory.release()
    print(f"{count} files are in {target}.", file=sys.stderr)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@settings_options
def restore(file: Path, config: Path | None, data_dir: str | None) -> None:
    """Unpack FILE into an empty data directory (--data-dir)."""
    settings = read_settings(config, data_dir)
    directory = find_directory(settings)
    manifest = restore_backup(file, directory, ledger_url=settings.ledger.url)
    print(f"{len(manifest.files)} files are in {directory.path}, as ATLAS {manifest.version} wrote them.", file=sys.stderr)
