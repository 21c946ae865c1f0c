"""A closed Run as a signed receipt: what was asked, the code, how it was tested, and what that proved.

A receipt is one JSON object that anybody can check offline: the signature is Ed25519 over the receipt's canonical JSON, and the
public key stands beside it. That proves only that the holder of *that* key made it; whose key it is, its fingerprint says to
whoever has pinned it. And since code and tests are inside, a doubter runs them again (`rerun_receipt`) and need trust nobody.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec.structs import replace

from atlas import __version__
from atlas.errors import BadRequest
from atlas.types import Execution, Program, Run, RunLimits, Value, Verdict

FORMAT = "atlas-receipt-1"
KEY_NAME = "receipt-key"  # secrets/NAME: 32 bytes
LIMIT_BYTES = 16 * 1024 * 1024

RunProgram = Callable[[Program, RunLimits], Awaitable[Execution]]


class Receipt(Value, frozen=True, kw_only=True):
    """What is signed.

    Attributes:
        format: names the form of this object.
        made_by: version of the server.
        issued_at: Unix seconds.
        checks: what the code was tested with; their `code` is empty.
    """

    format: str
    made_by: str
    issued_at: float
    task: str
    code: str
    checks: tuple[Program, ...]
    limits: RunLimits
    verdict: Verdict
    language: str = "python"
    entry_point: str = ""
    model: str = ""
    num_attempts: int = 0
    num_candidates: int = 0
    num_tokens: int = 0
    wall_s: float = 0.0


class Signed(Value, frozen=True, kw_only=True):
    """A receipt as it travels; key and signature are base64."""

    receipt: dict[str, Any]
    algorithm: str
    public_key: str
    signature: str


class Checked(NamedTuple):
    """What reading a receipt showed.

    Attributes:
        receipt: None if `problem` says why it is not to be believed.
        fingerprint: of the key that signed it.
    """

    receipt: Receipt | None
    fingerprint: str = ""
    problem: str = ""


class Rerun(NamedTuple):
    """What running a receipt's code on its tests again showed.

    Attributes:
        agrees: as many tests ran and passed as the receipt's verdict says, and there was one at least.
    """

    agrees: bool
    executions: tuple[Execution, ...]


def issue_receipt(run: Run, key: Ed25519PrivateKey, *, issued_at: float) -> bytes:
    """A run's receipt, as the bytes of a file.

    Raises:
        BadRequest: the run has no code to give a receipt for.
    """
    if run.request.project is not None:
        raise BadRequest("there is no receipt for a change to a project: nobody could run its tests again without the project")
    if not run.code:
        raise BadRequest("this run ended without code; there is nothing to give a receipt for")
    receipt = msgspec.to_builtins(_receipt(run, issued_at))
    signed = Signed(
        receipt=receipt,
        algorithm="ed25519",
        public_key=_base64(key.public_key().public_bytes_raw()),
        signature=_base64(key.sign(canonical(receipt))),
    )
    return msgspec.json.format(msgspec.json.encode(signed), indent=1) + b"\n"


def signing_key(secret: Callable[[str, Callable[[], bytes]], bytes]) -> Ed25519PrivateKey:
    """The key of a server, made when first needed; `secret(name, make)` keeps it."""
    return Ed25519PrivateKey.from_private_bytes(secret(KEY_NAME, lambda: Ed25519PrivateKey.generate().private_bytes_raw()))


def check_receipt(data: bytes, *, pinned: str = "") -> Checked:
    """Whether a receipt is whole, and signed by whom; whatever the bytes are, nothing is raised.

    Args:
        data: of the file.
        pinned: fingerprint of the only key that is trusted; empty: any key will do.
    """
    if len(data) > LIMIT_BYTES:
        return Checked(None, problem=f"a receipt has at most {LIMIT_BYTES} bytes; this has {len(data)}")
    try:
        signed = msgspec.json.decode(data, type=Signed)
        raw_key = base64.b64decode(signed.public_key, validate=True)
        Ed25519PublicKey.from_public_bytes(raw_key).verify(base64.b64decode(signed.signature), canonical(signed.receipt))
        receipt = msgspec.convert(signed.receipt, Receipt)
    except InvalidSignature:
        return Checked(None, problem="the signature does not fit: the receipt was changed after it was signed")
    except (ValueError, RecursionError) as error:  # msgspec's errors and base64's are among them
        return Checked(None, problem=f"this is no receipt: {error}")
    if signed.algorithm != "ed25519" or receipt.format != FORMAT:
        return Checked(None, problem=f"this is {signed.algorithm} and {receipt.format}; only ed25519 and {FORMAT} are known")
    found = key_fingerprint(raw_key)
    if pinned and found != pinned:
        return Checked(None, found, problem=f"signed by {found}, which is not the pinned key {pinned}")
    return Checked(receipt, found)


async def rerun_receipt(receipt: Receipt, run: RunProgram) -> Rerun:
    """Run the code on its tests again, each in a fresh interpreter.

    Raises:
        AtlasError: the sandbox failed, which says nothing about the receipt.
    """
    programs = [replace(check, code=receipt.code, fresh=True) for check in receipt.checks]
    executions = tuple([await run(program, receipt.limits) for program in programs])
    tests_run = sum(execution.tests_run for execution in executions)
    tests_passed = sum(execution.tests_passed for execution in executions)
    verdict = receipt.verdict
    return Rerun(0 < tests_run == verdict.tests_run and tests_passed == verdict.tests_passed, executions)


def key_fingerprint(public_key: bytes) -> str:
    """By which a key is named and pinned."""
    return "sha256:" + hashlib.sha256(public_key).hexdigest()


def canonical(receipt: dict[str, Any]) -> bytes:
    """The bytes that are signed: they do not depend on how a file is laid out, or on the order of its keys."""
    return json.dumps(receipt, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _receipt(run: Run, issued_at: float) -> Receipt:
    return Receipt(
        format=FORMAT,
        made_by=f"atlas {__version__}",
        issued_at=issued_at,
        task=run.request.task,
        code=run.code,
        checks=run.checks,
        limits=run.request.limits,
        verdict=run.verdict,
        language=run.request.language,
        entry_point=run.entry_point,
        model=run.request.model,
        num_attempts=len(run.attempts),
        num_candidates=sum(len(attempt.candidates) for attempt in run.attempts),
        num_tokens=run.num_tokens,
        wall_s=run.wall_s,
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
