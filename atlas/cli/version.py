"""`atlas version`."""

from __future__ import annotations

import json
import platform

import click

from atlas import __version__


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def version(as_json: bool) -> None:
    """Print the version.

    \b
    Example:
      atlas version --json
    """
    print(json.dumps({"atlas": __version__, "python": platform.python_version()}) if as_json else __version__)
