"""Passwords: argon2id, at most two at a time.

Unbounded, forty sign-ins at once would take 760 MiB; the parameters are OWASP's minimum and cost 22 ms here, where the library's
default costs 160 ms and 64 MiB. Machine keys are never hashed this way: they are random, and checked on every request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from atlas.store.rules import PASSWORD_MAX_CHARS

CONCURRENT_HASHES = 2


class Passwords:
    """Hashes and checks; each call blocks for about 25 ms, longer if others wait."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)
        self._slots = threading.BoundedSemaphore(CONCURRENT_HASHES)
        self._nobody = self._hasher.hash("nobody's password")

    def hash(self, password: str) -> str:
        """The hash with its salt and parameters, as text."""
        with self._slots:
            return self._hasher.hash(_bytes(password))

    def verify(self, hashed: str | None, password: str, *, admit: Callable[[], None]) -> bool:
        """Whether the password is the one; None (no such user) takes the same work and is always False.

        `admit` is called when the turn has come, before any work; what it raises is raised.
        """
        with self._slots:
            admit()
            try:
                return self._hasher.verify(hashed or self._nobody, _bytes(password)) and hashed is not None
            except (VerificationError, InvalidHashError):
                return False

    def is_outdated(self, hashed: str) -> bool:
        """Whether it was made with other parameters than new ones are."""
        return self._hasher.check_needs_rehash(hashed)


def _bytes(password: str) -> bytes:
    # One that is too long is wrong like any other, without the time to hash it.
    return password.encode("utf-8", "surrogatepass") if len(password) <= PASSWORD_MAX_CHARS else b""
