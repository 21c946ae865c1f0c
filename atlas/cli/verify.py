"""`atlas verify`: whether a receipt is whole, by whose key, and whether its code still passes its tests here. Needs no server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from atlas.cli.options import json_option, read_settings, settings_options
from atlas.errors import OperatorError
from atlas.log import configure_logging
from atlas.ralph import check_receipt, rerun_receipt
from atlas.sandbox import Sandbox
from atlas.settings import LogSettings, SandboxSettings
from atlas.store import DataDirectory

T = TypeVar("T")

KEY_NAME = "receipt-key"  # secrets/NAME: 32 bytes, by which this server's receipts are signed


@click.command()
@click.argument("receipt", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--fingerprint", default="", help="The only key to be trusted: sha256:...")
@click.option("--no-run", is_flag=True, help="Check the signature only.")
@json_option
@settings_options
def verify(receipt: Path, fingerprint: str, no_run: bool, as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """Check a receipt, and run its code on its tests again, in a sandbox of this machine.

    \b
    Example:
      atlas verify receipt.json --fingerprint sha256:1f0c...

    Exit status 0 means: the signature fits, and the code passed as many tests as the receipt says.
    """
    settings = read_settings(config, data_dir)
    checked = check_receipt(receipt.read_bytes(), pinned=fingerprint)
    if checked.receipt is None:
        raise OperatorError(f"{receipt}: {checked.problem}")
    found: dict[str, Any] = {"fingerprint": checked.fingerprint, "verdict": msgspec.to_builtins(checked.receipt.verdict)}
    is_good = True
    if not no_run:
        configure_logging("error")
        proved = checked.receipt
        again = asyncio.run(_in_sandbox(settings.sandbox, lambda sandbox: rerun_receipt(proved, sandbox.run)))
        is_good = again.agrees
        passed, run = (sum(getattr(done, name) for done in again.executions) for name in ("tests_passed", "tests_run"))
        found |= {"agrees": again.agrees, "tests_run": run, "tests_passed": passed}
    print(json.dumps(found) if as_json else _as_lines(found))
    sys.exit(0 if is_good else 1)


def signing_key(directory: DataDirectory) -> Ed25519PrivateKey:
    """The key of this data directory, made when first needed."""
    kept = directory.read_secret(KEY_NAME)
    if kept is None:
        kept = Ed25519PrivateKey.generate().private_bytes_raw()
        directory.write_secret(KEY_NAME, kept)
    return Ed25519PrivateKey.from_private_bytes(kept)


async def _in_sandbox(settings: SandboxSettings, work: Callable[[Sandbox], Awaitable[T]]) -> T:
    sandbox = Sandbox(settings, log_settings=LogSettings(level="error"))
    try:
        await sandbox.start()
        await sandbox.status()
        return await work(sandbox)
    finally:
        await sandbox.close()


def _as_lines(found: dict[str, Any]) -> str:
    lines = [f"signed by {found['fingerprint']}", f"verdict: {found['verdict']['status']}"]
    if "agrees" in found:
        word = "agrees" if found["agrees"] else "does NOT agree"
        lines.append(f"run again: {found['tests_passed']} of {found['tests_run']} tests passed, which {word} with the receipt")
    return "\n".join(lines)
