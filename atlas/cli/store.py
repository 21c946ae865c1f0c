"""The store as commands reach it: through the running server if there is one, else on the data directory itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from atlas import control
from atlas.cli.options import find_directory
from atlas.directory import DataDirectory
from atlas.errors import DataDirectoryBusy
from atlas.settings import Settings

if TYPE_CHECKING:
    from atlas.store import Store

RESTART_WAIT_S = 5.0  # of a serving process: it holds the directory and does not answer yet; measured 0.9-1.3 s


def ask_store(settings: Settings, method: str, params: dict[str, Any] | None = None) -> Any:
    """The result of an operation (`atlas.store.operations`), as plain data.

    Raises:
        AtlasError: refused, or the server holds the directory without answering.
    """
    directory = find_directory(settings)
    wanted = msgspec.to_builtins(params or {})
    deadline_s = time.monotonic() + RESTART_WAIT_S
    while True:
        try:
            return control.call(directory.control_socket, method, wanted)
        except (FileNotFoundError, ConnectionRefusedError):
            pass  # no server, or one that is just starting or stopping
        try:
            from atlas.store import run_operation  # the ledger's libraries take half a second, and a running server has them

            with held_store(directory, settings) as store:
                return run_operation(store, method, wanted)
        except DataDirectoryBusy:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)


@contextmanager
def held_store(directory: DataDirectory, settings: Settings) -> Iterator[Store]:
    """The store of a directory that no server holds, held meanwhile."""
    from atlas.store import open_store

    directory.create().hold()
    try:
        store = open_store(directory, settings=settings.ledger, auth=settings.auth, limits=settings.limits)
        try:
            yield store
        finally:
            store.close()
    finally:
        directory.release()
