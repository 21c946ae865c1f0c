"""Finished prefixes in the host's memory: KV cells cost every step that looks past them, a copy outside the context costs none.

Owned by the engine thread, like the cells. An entry is the whole state of one sequence, as llama.cpp writes it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from atlas.engine.radix import Match, PrefixTree
from atlas.engine.runner import State, Tokens


class Entry(NamedTuple):
    """Tokens, (n,), the cells that were computed for them, and the key of the adapter that they were computed with."""

    ids: Tokens
    state: State
    key: int


class HostCache:
    """The entries used last, as many as hold `limit_tokens` together. What another entry begins with is not kept twice."""

    def __init__(self, limit_tokens: int) -> None:
        self._limit_tokens = limit_tokens
        self._tree = PrefixTree()
        self._entries: OrderedDict[int, Entry] = OrderedDict()  # least recently used first
        self._num_put = 0
        self.num_tokens = 0

    def wants(self, ids: Tokens, *, key: int = 0) -> bool:
        """Whether an entry for these tokens would be kept, and would be new."""
        if not 0 < len(ids) <= self._limit_tokens:
            return False
        length, holder = self._tree.match(ids, key=key)
        if holder is None or length < len(ids):
            return True
        self._entries.move_to_end(holder)
        return False

    def put(self, ids: Tokens, state: State, *, key: int = 0) -> None:
        """Keep what `wants` has asked for."""
        length, holder = self._tree.match(ids, key=key)
        if holder is not None and length == len(self._entries[holder].ids):
            self._drop(holder)  # the new one begins with it
            length = self._tree.match(ids, key=key).length
        self._num_put += 1
        self._tree.begin(self._num_put, ids, length, key=key)
        if length < len(ids):
            self._tree.extend((self._num_put,), ids[length:])
        self._entries[self._num_put] = Entry(ids, state, key)
        self.num_tokens += len(ids)
        while self.num_tokens > self._limit_tokens:
            self._drop(next(iter(self._entries)))

    def match(self, prompt: Tokens, *, key: int = 0) -> Match:
        """The longest prefix of `prompt` that an entry of this adapter begins with; its holder is the entry. Changes nothing."""
        return self._tree.match(prompt, key=key)

    def take(self, number: int) -> Entry:
        """An entry that `match` has found; it stays, as the one used last."""
        self._entries.move_to_end(number)
        return self._entries[number]

    def length(self, number: int) -> int:
        """Tokens of an entry."""
        return len(self._entries[number].ids)

    def entries(self, *, key: int = 0) -> list[Entry]:
        """Those of this adapter, the one used longest ago first."""
        return [entry for entry in self._entries.values() if entry.key == key]

    def forget(self, key: int) -> None:
        """Drop whatever was computed with this adapter, which does not come back."""
        for number in [number for number, entry in self._entries.items() if entry.key == key]:
            self._drop(number)
        self._tree.forget(key)

    def _drop(self, number: int) -> None:
        entry = self._entries.pop(number)
        self._tree.release(number)
        self.num_tokens -= len(entry.ids)
