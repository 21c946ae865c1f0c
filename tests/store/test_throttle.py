from __future__ import annotations

import pytest

from atlas.errors import TooManyAttempts
from atlas.store.throttle import BLOCK_S, MAX_TRACKED, PAIR_LIMIT, SOURCE_LIMIT, WINDOW_S, Throttle
from tests.store.conftest import Clock


@pytest.fixture
def throttle(clock: Clock) -> Throttle:
    return Throttle(clock)


def fail(throttle: Throttle, times: int, source: str = "192.0.2.1", login: str = "ana") -> None:
    for _ in range(times):
        throttle.check(source, login)
        throttle.failed(source, login)


def test_the_tenth_failure_blocks_for_five_minutes(throttle: Throttle, clock: Clock) -> None:
    fail(throttle, PAIR_LIMIT)
    with pytest.raises(TooManyAttempts) as caught:
        throttle.check("192.0.2.1", "Ana ")
    assert caught.value.retry_after_s == BLOCK_S
    clock.advance(BLOCK_S - 1)
    with pytest.raises(TooManyAttempts) as caught:
        throttle.check("192.0.2.1", "ana")
    assert caught.value.retry_after_s == pytest.approx(1.0)
    clock.advance(1)
    fail(throttle, PAIR_LIMIT - 1)
    throttle.check("192.0.2.1", "ana")


def test_the_owner_can_sign_in_from_elsewhere_meanwhile(throttle: Throttle) -> None:
    fail(throttle, PAIR_LIMIT)
    throttle.check("192.0.2.2", "ana")
    throttle.check("192.0.2.1", "bob")


def test_slow_failures_do_not_add_up(throttle: Throttle, clock: Clock) -> None:
    for _ in range(3 * PAIR_LIMIT):
        fail(throttle, 1)
        clock.advance(WINDOW_S / (PAIR_LIMIT - 1))
    throttle.check("192.0.2.1", "ana")


def test_a_success_forgets_the_failures_for_that_name(throttle: Throttle) -> None:
    fail(throttle, PAIR_LIMIT - 1)
    throttle.succeeded("192.0.2.1", "ana")
    fail(throttle, PAIR_LIMIT - 1)
    throttle.check("192.0.2.1", "ana")


def test_a_success_does_not_hide_guessing_at_other_names(throttle: Throttle) -> None:
    for index in range(SOURCE_LIMIT):
        fail(throttle, 1, login=f"user{index}")
        throttle.succeeded("192.0.2.1", "the guesser's own account")
    with pytest.raises(TooManyAttempts):
        throttle.check("192.0.2.1", "ana")


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("unix socket", "unix socket", True),
    ],
)
def test_an_ipv6_customer_is_one_source(throttle: Throttle, first: str, second: str, is_same: bool) -> None:
    fail(throttle, PAIR_LIMIT, source=first)
    if is_same:
        with pytest.raises(TooManyAttempts):
            throttle.check(second, "ana")
    else:
        throttle.check(second, "ana")


def test_memory_is_bounded(throttle: Throttle) -> None:
    for index in range(MAX_TRACKED):
        throttle.failed(f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}", "ana")
    assert len(throttle._tracked) == MAX_TRACKED
