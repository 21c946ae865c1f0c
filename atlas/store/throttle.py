"""Throttled sign-in: per source and name, and per source alone. Never per name alone, which would let strangers lock people out.

Kept in memory: a restart forgets. Not covered: guesses spread over very many networks; passwords of twelve characters are.
"""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from atlas.errors import TooManyAttempts
from atlas.store.rules import login_key

WINDOW_S = 60.0
BLOCK_S = 300.0
PAIR_LIMIT = 10  # wrong passwords for one name from one source within the window
SOURCE_LIMIT = 50  # for any names
MAX_TRACKED = 20_000  # about 20 MB at worst; the one touched longest ago is forgotten first


class _Failures:
    def __init__(self, limit: int) -> None:
        self.times: deque[float] = deque(maxlen=limit)
        self.blocked_until_s = -math.inf


class Throttle:
    """Counts failures. What is being checked at the moment is not counted yet, so check again when its turn has come."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tracked: OrderedDict[tuple[str, str], _Failures] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, source: str, login: str) -> None:
        """Raises:
        TooManyAttempts: there were too many failures; says when to come back.
        """
        network = _network(source)
        with self._lock:
            blocked = [self._tracked[key].blocked_until_s for key in _keys(network, login) if key in self._tracked]
            wait_s = max(blocked, default=-math.inf) - self._clock()
        if wait_s > 0:
            raise TooManyAttempts(f"too many failed attempts; try again in {math.ceil(wait_s)} s", retry_after_s=wait_s)

    def failed(self, source: str, login: str) -> None:
        """Count a failure; the one that reaches the limit begins a block."""
        pair, alone = _keys(_network(source), login)
        with self._lock:
            self._count(pair, PAIR_LIMIT)
            self._count(alone, SOURCE_LIMIT)

    def succeeded(self, source: str, login: str) -> None:
        """Forget the failures for this name from this source; those of the source stay."""
        pair, _ = _keys(_network(source), login)
        with self._lock:
            self._tracked.pop(pair, None)

    def _count(self, key: tuple[str, str], limit: int) -> None:
        failures = self._tracked.setdefault(key, _Failures(limit))
        self._tracked.move_to_end(key)
        if len(self._tracked) > MAX_TRACKED:
            self._tracked.popitem(last=False)
        now_s = self._clock()
        failures.times.append(now_s)
        if len(failures.times) == limit and failures.times[0] > now_s - WINDOW_S:
            failures.blocked_until_s = now_s + BLOCK_S
            failures.times.clear()


def _keys(network: str, login: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return (network, login_key(login[:255])), (network, "")


def _network(source: str) -> str:
    """The address, or for IPv6 its /64: one customer has at least as much."""
    try:
        address = ipaddress.ip_address(source)
    except ValueError:
        return source[:64]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address)
