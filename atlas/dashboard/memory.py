"""What the dashboard remembers while the server runs: bounded, of this process, lost without harm."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from atlas.dashboard.hardware import Hardware
from atlas.dashboard.pulls import Pulls
from atlas.errors import RateLimited

SESSIONS_MAX = 1000  # whose playground keys are remembered; those of forgotten sessions still end by themselves
BRIEFS_MAX = 2000
STREAMS_MAX = 8  # event streams of one session; a browser opens six per server over HTTP/1.1


@dataclass(frozen=True)
class Memory:
    """Written by the event loop only.

    Attributes:
        playground_keys: session id -> id of the key its playground uses.
        briefs: task id -> what the list says of a closed task.
        streams: session id -> open event streams.
        working: what goes on when the page that began it is closed.
    """

    hardware: Hardware = field(default_factory=Hardware)
    pulls: Pulls = field(default_factory=Pulls)
    playground_keys: OrderedDict[str, str] = field(default_factory=OrderedDict)
    briefs: OrderedDict[str, Any] = field(default_factory=OrderedDict)  # of tasks_reading.Brief
    streams: Counter[str] = field(default_factory=Counter)
    working: set[asyncio.Task[None]] = field(default_factory=set)

    def keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Until it is done."""
        self.working.add(task)
        task.add_done_callback(self.working.discard)
        return task

    def remember_key(self, session_id: str, key_id: str) -> None:
        self.playground_keys[session_id] = key_id
        while len(self.playground_keys) > SESSIONS_MAX:
            self.playground_keys.popitem(last=False)

    def remember_brief(self, task_id: str, brief: Any) -> None:
        self.briefs[task_id] = brief
        while len(self.briefs) > BRIEFS_MAX:
            self.briefs.popitem(last=False)

    @contextmanager
    def stream(self, session_id: str) -> Iterator[None]:
        """Hold one of a session's event streams."""
        self.streams[session_id] += 1
        try:
            yield
        finally:
            self.streams[session_id] -= 1
            if self.streams[session_id] <= 0:
                del self.streams[session_id]

    def check_streams(self, session_id: str) -> None:
        """Raises RateLimited: this session has as many event streams as it may."""
        if self.streams[session_id] >= STREAMS_MAX:
            raise RateLimited(f"{STREAMS_MAX} pages of this session are live already; close one", retry_after_s=5)
