"""`atlas worker`: solve tasks of a server, on its machine or on another one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from atlas.cli.options import find_directory, read_settings, settings_options
from atlas.errors import OperatorError
from atlas.log import configure_logging
from atlas.ralph import WorkerOptions, run_worker
from atlas.settings import LogSettings, SandboxSettings, Settings

SOCKET = "workers.sock"  # in the data directory


@click.command()
@click.option("--server", help="Address of a server elsewhere, https://HOST:PORT; by default the one on this data directory.")
@click.option("--key", envvar="ATLAS_API_KEY", help="API key of scope `worker` for --server; else from ATLAS_API_KEY.")
@click.option("--ca", type=click.Path(exists=True, dir_okay=False), help="PEM file of the server's own certificate authority.")
@click.option("--server-sandbox", is_flag=True, help="With --server: run code in the server's sandbox, not in one here.")
@settings_options
def worker(
    server: str | None, key: str | None, ca: str | None, server_sandbox: bool, config: Path | None, data_dir: str | None
) -> None:
    """Solve a server's tasks, one at a time, until Ctrl-C; what was begun is given back.

    \b
    Example:
      atlas keys create --name worker --scope worker        # where the server runs
      atlas worker --server https://gpu.example:8000 --ca ca.pem

    The model stays with the server; code runs in a sandbox on this machine if it can be isolated here, else in the server's.
    """
    settings = read_settings(config, data_dir)
    configure_logging(settings.log.level, form=settings.log.format)
    if server:
        options = elsewhere(server, key, ca or "", log=settings.log, sandbox=None if server_sandbox else settings.sandbox)
    else:
        options = here(settings)
    asyncio.run(run_worker(options))


def elsewhere(server: str, key: str | None, ca: str, *, log: LogSettings, sandbox: SandboxSettings | None) -> WorkerOptions:
    """For a server on another machine.

    Raises:
        OperatorError: there is no key.
    """
    if not key:
        raise OperatorError("--server needs a key of scope `worker`: --key, or ATLAS_API_KEY in the environment")
    return WorkerOptions(server=server, key=key, ca=ca, sandbox=sandbox, log=log)


def here(settings: Settings) -> WorkerOptions:
    """For the server that holds the data directory.

    Raises:
        OperatorError: there is none.
    """
    path = find_directory(settings).path / SOCKET
    if not path.exists():
        raise OperatorError(f"no server takes workers on {path.parent}; start one with `atlas serve`, or name one with --server")
    return WorkerOptions(socket=str(path), log=settings.log)
