"""`atlas serve` as shipped, with a scripted engine in place of a model: the gateway's own cost, without any upstream.

`python -m benchmarks.scripted --port PORT --data-dir DIR [--config FILE]`
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from atlas.app import main
from atlas.cli.options import read_settings, settings_options
from atlas.cli.serve import run_server
from atlas.engine import Engine, ScriptedEngine
from atlas.launch import Launch
from benchmarks.mock_upstream import NUM_CHUNKS

CHILD = "--child"  # what the parent starts


async def scripted(_launch: Launch) -> Engine:
    return ScriptedEngine(["tok " * NUM_CHUNKS], model="mock")


@click.command()
@click.option("--port", type=int, required=True)
@settings_options
def serve(port: int, config: Path | None, data_dir: str | None) -> None:
    """Serve until a signal says stop."""
    settings = read_settings(config, data_dir, server__port=port, engine__model="nano")
    run_server(settings, command=[sys.executable, "-m", "benchmarks.scripted", CHILD])


if __name__ == "__main__":
    main(scripted) if sys.argv[1] == CHILD else serve()
