"""Receipts on the command line: whether one is whole, by whose key, and whether its code still passes its tests here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from atlas.cli.sandboxes import in_sandbox
from atlas.errors import OperatorError
from atlas.log import configure_logging
from atlas.ralph import check_receipt, rerun_receipt
from atlas.settings import Settings


def verify_receipt(settings: Settings, receipt: Path, *, fingerprint: str, run_again: bool, as_json: bool) -> None:
    """Check a receipt, and run its code on its tests again, in a sandbox of this machine. Never returns.

    Exit status 0 means: the signature fits, and the code passed as many tests as the receipt says.
    """
    checked = check_receipt(receipt.read_bytes(), pinned=fingerprint)
    if checked.receipt is None:
        raise OperatorError(f"{receipt}: {checked.problem}")
    found: dict[str, Any] = {"fingerprint": checked.fingerprint, "verdict": msgspec.to_builtins(checked.receipt.verdict)}
    is_good = True
    if run_again:
        configure_logging("error")
        proved = checked.receipt
        again = in_sandbox(settings, lambda sandbox: rerun_receipt(proved, sandbox.run))
        is_good = again.agrees
        passed, run = (sum(getattr(done, name) for done in again.executions) for name in ("tests_passed", "tests_run"))
        found |= {"agrees": again.agrees, "tests_run": run, "tests_passed": passed}
    print(json.dumps(found) if as_json else _as_lines(found))
    sys.exit(0 if is_good else 1)


def _as_lines(found: dict[str, Any]) -> str:
    lines = [f"signed by {found['fingerprint']}", f"verdict: {found['verdict']['status']}"]
    if "agrees" in found:
        word = "agrees" if found["agrees"] else "does NOT agree"
        lines.append(f"run again: {found['tests_passed']} of {found['tests_run']} tests passed, which {word} with the receipt")
    return "\n".join(lines)
