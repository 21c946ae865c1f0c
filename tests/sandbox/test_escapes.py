"""Attacks on the sandbox: each contained, the host unchanged, the pool well after each; as root and as an ordinary user.

All of them run twenty at a time in one pool, but for those that measure what they cost others, which run alone. `make test-slow`
also runs every one by itself, and in the other tiers.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Literal, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlas.sandbox.boxes import BoxSpec
from atlas.sandbox.native import NativeBoxes
from atlas.types import Tier
from tests.sandbox.as_user import REPOSITORY, USER, run_as_user
from tests.sandbox.escapes import CASES
from tests.sandbox.escapes.drive import Order, Outcomes
from tests.sandbox.escapes.escape import Escape, Kind, Outcome
from tests.sandbox.escapes.judge import faults
from tests.sandbox.escapes.world import World

Identity = Literal["root", "user"]
IDENTITIES: tuple[Identity, ...] = ("root", "user") if os.getuid() == 0 else ("user",)
BOXES_OF_ROOT = 64777  # nobody's, and not the one that other tests' boxes run as
AT_A_TIME = 20
NUM_CASES = 130  # at the least
TIMEOUT_S = 900
DRIVE = [sys.executable, "-m", "tests.sandbox.escapes.drive"]

WITHOUT = {"bwrap": shutil.which("bwrap") is None}


class Campaign(msgspec.Struct, frozen=True, kw_only=True):
    """All attacks in one tier, by one user."""

    tier: Tier
    outcomes: dict[str, Outcome]
    damage: list[str]
    left: list[str]
    descriptors: int
    num_restarts: int
    canary: str


def wage(identity: Identity, tier: Tier, parallel: int, *, ahead: bool = False) -> Campaign:
    """Run everything; those that must be alone after the others. `ahead`: in boxes that were prepared before."""
    cases = [case for case in CASES if tier not in case.not_in]
    with World(_uid(identity)) as world:
        together = drive(world, identity, tier, parallel, [case for case in cases if not case.alone], ahead=ahead)
        alone = drive(world, identity, tier, 1, [case for case in cases if case.alone], ahead=ahead)
        return Campaign(
            tier=tier,
            outcomes={outcome.name: outcome for outcome in (*together.outcomes, *alone.outcomes)},
            damage=world.damage(),
            left=together.left + alone.left,
            descriptors=together.descriptors + alone.descriptors,
            num_restarts=together.num_restarts + alone.num_restarts,
            canary=world.canary,
        )


def drive(world: World, identity: Identity, tier: Tier, parallel: int, cases: list[Escape], *, ahead: bool = False) -> Outcomes:
    order = Order(
        tier=tier,
        uid=world.uid,
        python=str(world.python),
        parallel=parallel,
        canary=world.canary,
        host=world.facts,
        escapes=tuple(cases),
        ahead=ahead,
    )
    text = msgspec.json.encode(order).decode()
    if identity == "user":
        done = run_as_user(DRIVE, input=text, timeout_s=TIMEOUT_S)
    else:
        done = subprocess.run(DRIVE, input=text, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return msgspec.json.decode(done.stdout, type=Outcomes)


def _uid(identity: Identity) -> int:
    if os.getuid():
        return os.getuid()
    return BOXES_OF_ROOT if identity == "root" else USER


@functools.cache
def _waged(identity: Identity, tier: Tier, parallel: int, *, ahead: bool) -> Campaign | str:
    try:
        return wage(identity, tier, parallel, ahead=ahead)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        return str(error)


def waged(identity: Identity, tier: Tier, parallel: int, *, ahead: bool = False) -> Campaign:
    """Once for all tests that look at it, whether it came to its end or not."""
    campaign = _waged(identity, tier, parallel, ahead=ahead)
    assert isinstance(campaign, Campaign), campaign
    return campaign


def verdict(escape: Escape, campaign: Campaign) -> list[str]:
    return faults(escape, campaign.outcomes[escape.name], campaign.canary, is_bare=campaign.tier == "landlock")


def aftermath(campaign: Campaign) -> list[str]:
    """What is not as it was, when all has ended."""
    found = [*campaign.damage, *campaign.left]
    if campaign.descriptors:
        found.append(f"{campaign.descriptors} descriptors of the pool are lost")
    if campaign.num_restarts:
        found.append(f"{campaign.num_restarts} processes of the pool died")
    return found


BY_NAME = {escape.name: escape for escape in CASES}
in_every_case = pytest.mark.parametrize("name", [*BY_NAME])
as_everybody = pytest.mark.parametrize("identity", IDENTITIES)


def test_there_are_attacks_of_every_kind_and_each_has_its_own_name() -> None:
    assert len(CASES) >= NUM_CASES
    assert len(BY_NAME) == len(CASES)
    assert Counter(escape.kind for escape in CASES).keys() == set(get_args(Kind))
    assert all(count >= 10 for count in Counter(escape.kind for escape in CASES).values())


@pytest.mark.timeout(TIMEOUT_S)
@as_everybody
@in_every_case
def test_an_attack_is_contained(name: str, identity: Identity) -> None:
    assert verdict(BY_NAME[name], waged(identity, "native", AT_A_TIME)) == []


@pytest.mark.timeout(TIMEOUT_S)
@as_everybody
def test_host_and_pool_are_as_they_were_when_all_attacks_have_ended(identity: Identity) -> None:
    assert aftermath(waged(identity, "native", AT_A_TIME)) == []


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
@as_everybody
@in_every_case
def test_an_attack_in_a_box_that_was_prepared_before_is_contained(name: str, identity: Identity) -> None:
    if BY_NAME[name].tests:
        pytest.skip("no box for it is prepared")
    assert verdict(BY_NAME[name], waged(identity, "native", AT_A_TIME, ahead=True)) == []


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
@as_everybody
def test_host_and_pool_are_as_they_were_when_all_attacks_in_prepared_boxes_have_ended(identity: Identity) -> None:
    assert aftermath(waged(identity, "native", AT_A_TIME, ahead=True)) == []


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
@as_everybody
@in_every_case
def test_an_attack_by_itself_is_contained_and_leaves_nothing(name: str, identity: Identity) -> None:
    assert verdict(BY_NAME[name], waged(identity, "native", 1)) == []


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
@as_everybody
@pytest.mark.parametrize("tier", ["bwrap", "landlock"])
@in_every_case
def test_an_attack_is_contained_in_a_lesser_tier(name: str, tier: Tier, identity: Identity) -> None:
    escape = BY_NAME[name]
    if tier in escape.not_in:
        pytest.skip(f"{tier} does not promise it")
    if WITHOUT.get(tier):
        pytest.skip(f"there is no {tier} here")
    assert verdict(escape, waged(identity, tier, 4)) == []


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
@as_everybody
@pytest.mark.parametrize("tier", ["bwrap", "landlock"])
def test_host_and_pool_are_as_they_were_after_all_attacks_in_a_lesser_tier(tier: Tier, identity: Identity) -> None:
    if WITHOUT.get(tier):
        pytest.skip(f"there is no {tier} here")
    assert aftermath(waged(identity, tier, 4)) == []


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def boxes(runner: asyncio.Runner) -> Iterator[NativeBoxes]:
    boxes = NativeBoxes(python=sys.executable, uid=BOXES_OF_ROOT, slots=1)
    runner.run(boxes.start())
    yield boxes
    runner.run(boxes.close())


SCRIBBLE = """
import os
for name in os.listdir("/proc/self/fd"):
    if int(name) > 2:
        try:
            os.write(int(name), {data!r})
        except OSError:
            pass
"""
FRAMES = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.binary(max_size=40).map(lambda body: len(body).to_bytes(4, "big") + body),
        st.just(b"\0\0\0\1{"),
    )
).map(b"".join)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=FRAMES)
def test_no_bytes_on_the_way_to_the_pool_are_more_than_bytes(data: bytes, boxes: NativeBoxes, runner: asyncio.Runner) -> None:
    spec = BoxSpec(runner="run", payload={}, files={"main.py": SCRIBBLE.format(data=data)})
    result = runner.run(boxes.run(spec))
    assert (result.ending, result.exit_code) == ("exit", 0)
    assert result.is_damaged or sum(len(repr(frame)) for frame in result.frames) <= 10 * len(data)
    hello = runner.run(boxes.run(BoxSpec(runner="run", payload={}, files={"main.py": "print('hello')"})))
    assert (hello.stdout, hello.frames, boxes.num_restarts) == (b"hello\n", (), 0)
