"""Waiting for something to happen, without asking again and again and without missing it."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary


class Bells:
    """A bell for each name that somebody waits for.

    Take a ticket, look, and wait for the ticket: what rings between is not missed.
    """

    def __init__(self) -> None:
        self._waiting: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()  # gone with the last who waits

    def ticket(self, name: str) -> asyncio.Event:
        """Is set when the bell rings next."""
        ticket = self._waiting.get(name)
        if ticket is None:
            ticket = self._waiting[name] = asyncio.Event()
        return ticket

    def ring(self, name: str) -> None:
        """Wake all who hold a ticket."""
        ticket = self._waiting.pop(name, None)
        if ticket is not None:
            ticket.set()
