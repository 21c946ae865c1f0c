"""Receipts verify offline, survive being laid out anew, notice every change, and can be run again."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from atlas.errors import BadRequest
from atlas.ralph.receipts import check_receipt, issue_receipt, key_fingerprint, rerun_receipt
from atlas.sandbox import Sandbox
from atlas.types import Case, Program, Request, Route, Run, Verdict

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OURS = key_fingerprint(KEY.public_key().public_bytes_raw())
CHECK = Program(
    code="", mode="function", entry_point="f", cases=(Case(args="(1,)", expected="2"), Case(args="(2,)", expected="3"))
)
RUN = Run(
    request=Request(task="Write f(x), which adds öne."),
    route=Route(),
    verdict=Verdict(
        status="verified", source="given", tests_run=2, tests_passed=2, sealed=True, tier="native", is_confirmed=True
    ),
    entry_point="f",
    checks=(CHECK,),
    code="def f(x):\n    return x + 1\n",
)
DATA = issue_receipt(RUN, KEY, issued_at=1_800_000_000.5)


def test_a_receipt_says_what_was_proved_and_by_whose_key() -> None:
    checked = check_receipt(DATA, pinned=OURS)
    assert checked.problem == ""
    assert checked.fingerprint == OURS
    assert checked.receipt is not None
    assert (checked.receipt.code, checked.receipt.verdict, checked.receipt.checks) == (RUN.code, RUN.verdict, RUN.checks)


def test_layout_and_order_do_not_matter() -> None:
    shuffled = dict(reversed(json.loads(DATA)["receipt"].items()))
    assert check_receipt(json.dumps(json.loads(DATA) | {"receipt": shuffled}, indent=7).encode()).problem == ""


def test_another_key_is_not_the_pinned_one() -> None:
    other = issue_receipt(RUN, Ed25519PrivateKey.from_private_bytes(bytes(32)), issued_at=0)
    assert check_receipt(other).receipt is not None
    checked = check_receipt(other, pinned=OURS)
    assert checked.receipt is None
    assert OURS in checked.problem


@pytest.mark.parametrize("field", json.loads(DATA)["receipt"])
def test_every_field_is_signed(field: str) -> None:
    changed = json.loads(DATA)
    changed["receipt"][field] = {"status": "verified"} if isinstance(changed["receipt"][field], dict) else "other"
    assert "signature" in check_receipt(json.dumps(changed).encode()).problem


def test_a_signature_taken_from_elsewhere_does_not_fit() -> None:
    other = json.loads(issue_receipt(replace(RUN, code="def f(x):\n    return 0\n"), KEY, issued_at=0))
    assert "signature" in check_receipt(json.dumps(json.loads(DATA) | {"signature": other["signature"]}).encode()).problem


@settings(max_examples=200)
@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_no_flipped_byte_is_believed_to_be_something_else(position: int, mask: int) -> None:
    data = bytearray(DATA)
    data[position] ^= mask
    checked = check_receipt(bytes(data))
    assert checked.receipt is None or checked.receipt == check_receipt(DATA).receipt  # white space may change


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[1]", b"\xff", b"[" * 100_000, b'{"receipt": {}, "algorithm": "none"}', DATA[:-40]]
)
def test_what_is_no_receipt_is_said_to_be_none(data: bytes) -> None:
    assert check_receipt(data).problem


def test_without_code_there_is_no_receipt() -> None:
    with pytest.raises(BadRequest, match="without code"):
        issue_receipt(replace(RUN, code=""), KEY, issued_at=0)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_receipt_can_be_run_again(sandbox: Sandbox) -> None:
    receipt = check_receipt(DATA).receipt
    assert receipt is not None
    again = await rerun_receipt(receipt, sandbox.run)
    assert again.agrees
    assert again.executions[0].tests_passed == 2


@pytest.mark.asyncio(loop_scope="module")
async def test_a_receipt_for_wrong_code_fails_when_it_is_run_again(sandbox: Sandbox) -> None:
    receipt = check_receipt(issue_receipt(replace(RUN, code="def f(x):\n    return 2\n"), KEY, issued_at=0)).receipt
    assert receipt is not None
    assert not (await rerun_receipt(receipt, sandbox.run)).agrees


@pytest.mark.asyncio(loop_scope="module")
async def test_a_receipt_without_tests_proves_nothing(sandbox: Sandbox) -> None:
    receipt = check_receipt(issue_receipt(replace(RUN, checks=()), KEY, issued_at=0)).receipt
    assert receipt is not None
    assert not (await rerun_receipt(receipt, sandbox.run)).agrees
