"""A failure of ours is tried again, a bounded number of times; it says nothing about any candidate."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import TypeVar

from atlas.errors import AtlasError, EngineFailed, SandboxRefused, Unavailable, UpstreamFailed
from atlas.types import OurFailure

MAX_TRIES = 4
FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 10.0
PASSING: tuple[type[AtlasError], ...] = (Unavailable, EngineFailed, UpstreamFailed)

T = TypeVar("T")


def is_passing(error: AtlasError) -> bool:
    """Whether trying again may help: not where code is refused altogether, and not where the request is wrong."""
    return isinstance(error, PASSING) and not isinstance(error, SandboxRefused)


def backoff_s(number: int, error: AtlasError) -> float:
    """How long to wait after the `number`th failure, from 1."""
    return min(MAX_BACKOFF_S, max(FIRST_BACKOFF_S * 4.0 ** (number - 1), error.retry_after_s or 0.0))


async def persist(call: Callable[[], Awaitable[T]], on_failure: Callable[[AtlasError, float], Awaitable[None]]) -> T:
    """The result of a call that may fail for a while.

    Args:
        call: makes the attempt anew each time.
        on_failure: is told the failure and how long to wait, and waits.

    Raises:
        AtlasError: the last failure, after four; at once where trying again cannot help.
    """
    for number in itertools.count(1):
        try:
            return await call()
        except AtlasError as error:
            if number == MAX_TRIES or not is_passing(error):
                raise
            await on_failure(error, backoff_s(number, error))
    raise AssertionError("unreachable")


def our_failure(error: AtlasError) -> OurFailure:
    return OurFailure(code=error.code, message=error.message)
