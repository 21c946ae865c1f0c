"""Waiting for something to happen, without asking again and again and without missing it."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class Ticket(asyncio.Event, Generic[T]):
    """Is set when the bell rings next.

    Attributes:
        word: what whoever rang it had to say; None: look for yourself.
    """

    word: T | None = None


class Bells(Generic[T]):
    """A bell for each name that somebody waits for.

    Take a ticket, look, and wait for the ticket: what rings between is not missed.
    """

    def __init__(self) -> None:
        self._waiting: WeakValueDictionary[str, Ticket[T]] = WeakValueDictionary()  # gone with the last who waits

    def ticket(self, name: str) -> Ticket[T]:
        """Of the bell's next ringing."""
        ticket = self._waiting.get(name)
        if ticket is None:
            ticket = self._waiting[name] = Ticket()
        return ticket

    def ring(self, name: str, word: T | None = None) -> None:
        """Wake all who hold a ticket."""
        ticket = self._waiting.pop(name, None)
        if ticket is not None:
            ticket.word = word
            ticket.set()
