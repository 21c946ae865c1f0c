"""Every tier keeps the contract, as root and as an ordinary user; and the contract notices when one does not."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import msgspec
import pytest

from atlas.errors import SandboxUnavailable
from atlas.sandbox.boxes import BoxResult, BoxSpec
from atlas.sandbox.contract import CHECKS, Host, check_contract
from atlas.sandbox.contract_promises import PROMISES
from atlas.sandbox.native import NativeBoxes
from atlas.sandbox.tiers import make
from atlas.settings import SandboxSettings
from atlas.types import RunLimits, Tier
from tests.sandbox.as_user import BOXES, needs_root, run_tests_as_user

SETTINGS = SandboxSettings(slots=2, min_tier="landlock", uid=BOXES)
NUM_LEAST = {"native": 50, "bwrap": 50, "landlock": 45, "none": 35}  # promises that are tried


@pytest.fixture(params=NUM_LEAST)
async def boxes(request: pytest.FixtureRequest) -> AsyncIterator[NativeBoxes]:
    boxes = make(request.param, SETTINGS, sys.executable)
    try:
        await boxes.start()
    except SandboxUnavailable as error:
        pytest.skip(f"this machine has no tier {request.param}: {error.message}")
    yield boxes
    await boxes.close()


async def test_every_promise_of_a_tier_is_kept(boxes: NativeBoxes) -> None:
    results = await check_contract(boxes)
    assert [result for result in results if not result.is_ok] == []
    assert len(results) >= NUM_LEAST[boxes.tier]


@needs_root
def test_every_promise_is_kept_for_an_ordinary_user_as_well() -> None:
    run_tests_as_user(f"{__file__}::{test_every_promise_of_a_tier_is_kept.__name__}")


@pytest.mark.parametrize("boxes", ["landlock", "none"], indirect=True)
async def test_a_disk_of_the_host_that_is_full_is_our_failure(boxes: NativeBoxes) -> None:
    """These boxes have their files on it. No disk is filled for this: the program may write more than any holds."""
    spec = BoxSpec(runner="run", payload={}, files={"main.py": "print(1)"}, limits=RunLimits(disk_bytes=1 << 60))
    with pytest.raises(SandboxUnavailable, match=r"/tmp has .* bytes free, and a program may write 1152921504606846976"):
        await boxes.run(spec)
    assert (await boxes.run(msgspec.structs.replace(spec, limits=RunLimits()))).stdout == b"1\n"


class Liar:
    """Boxes that run nothing and say whatever they are told to say."""

    tier: Tier = "native"
    slots = 50
    num_zygotes = 0
    num_restarts = 0

    def __init__(self, result: BoxResult | Exception) -> None:
        self._result = result

    async def warm_up(self) -> None:
        pass

    async def close(self) -> None:
        """There is nothing to close."""

    async def run(self, spec: BoxSpec) -> BoxResult:
        await asyncio.sleep(0)
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    async def run_pair(self, tests: BoxSpec, candidate: BoxSpec) -> tuple[BoxResult, BoxResult]:
        return await self.run(tests), await self.run(candidate)


UNSEEN = {"cancelling is prompt and leaves nothing"}  # which looks at what is left, and of nothing nothing is


@pytest.mark.parametrize(
    "result",
    [
        BoxResult(ending="exit", exit_code=0, stdout=b"lies\n"),
        BoxResult(ending="killed"),
        SandboxUnavailable("the sandbox is tired"),
    ],
)
async def test_boxes_that_lie_keep_no_promise(result: BoxResult | Exception) -> None:
    results = await check_contract(Liar(result))
    kept = {found.name for found in results if found.is_ok}
    assert kept == UNSEEN | {"the host is as it was"}
    assert len(results) == len(PROMISES) + len(CHECKS) + 1


async def test_a_failure_of_ours_is_a_detail_and_not_an_exception() -> None:
    results = await check_contract(Liar(SandboxUnavailable("the sandbox is tired")))
    assert "a failure of ours: the sandbox is tired" in {found.detail for found in results}


def test_a_file_written_outside_is_noticed() -> None:
    host = Host()
    (host.directory / "atlas-was-here").touch()
    assert list(host.damage()) == ["files were written outside: ['atlas-was-here', 'canary.txt']"]
    host.close()
    assert not host.directory.exists()


async def test_a_connection_from_a_box_is_noticed() -> None:
    host = Host()
    port = int(host.fill_in("@PORT@"))
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    assert [line.split(" to ")[0] for line in host.damage()] == ["a box connected"]
    writer.close()
    await writer.wait_closed()
    host.close()


def test_names_are_sentences_and_each_is_there_once() -> None:
    names = [promise.name for promise in PROMISES] + [*CHECKS]
    assert len(names) == len(set(names))
    assert all(" " in name and not name.endswith(".") for name in names)
