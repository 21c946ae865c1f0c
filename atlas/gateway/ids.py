"""Ids of requests and answers: unique, and no secret; asking the kernel for each of their bits took 20 us an id, measured."""

from __future__ import annotations

import random
import secrets

_random = random.Random(secrets.randbits(256))  # noqa: S311  # whoever guesses an id is still asked who they are


def new_id(prefix: str) -> str:
    """The prefix and 96 random bits in hex."""
    return f"{prefix}{_random.getrandbits(96):024x}"
