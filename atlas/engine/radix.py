"""Who holds which KV cells: a radix tree over token ids, sequences still running included.

Each node is a run of tokens whose cells are shared by its holders (sequence ids). A sequence's tokens are the path from the root
to its node. A new prompt takes the longest prefix anybody holds, running or finished, and shares those cells (RadixAttention,
https://arxiv.org/abs/2312.07104, without pages: in llama.cpp's unified cache any cell can be shared by any set of sequences).

Two sequences that computed the same tokens at the same time, each for itself, hold two runs of cells; both are counted, one is
found.

An adapter changes what is in the cells of the same tokens: each has a root of its own, by its key, and so nothing is ever shared
between two of them or with the base (key 0).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from atlas.engine.runner import Tokens

_EMPTY = np.empty(0, np.int32)


@dataclass(eq=False)
class Node:
    """A run of cells. `tokens` may be longer than `length`: spare room for the next ones."""

    parent: Node | None
    tokens: Tokens = field(default_factory=lambda: _EMPTY)
    length: int = 0
    holders: set[int] = field(default_factory=set)
    children: dict[int, Node] = field(default_factory=dict)  # by first token; only one of equal runs is listed

    def append(self, tokens: Tokens) -> None:
        end = self.length + len(tokens)
        if end > len(self.tokens):
            grown = np.empty(max(2 * end, 64), np.int32)
            grown[: self.length] = self.tokens[: self.length]
            self.tokens = grown
        self.tokens[self.length : end] = tokens
        self.length = end


class Match(NamedTuple):
    """The longest held prefix of a prompt: its length in tokens and one sequence that holds it (None at length 0)."""

    length: int
    holder: int | None


class PrefixTree:
    """The cells of one context. Owned by the engine thread; mirrors, and never calls, the context."""

    def __init__(self) -> None:
        self._roots: dict[int, Node] = {}  # by adapter's key
        self._ends: dict[int, Node] = {}
        self.cells = 0

    def match(self, prompt: Tokens, *, key: int = 0) -> Match:
        """Longest prefix of `prompt` that some sequence of this adapter holds. Changes nothing."""
        node, depth, holder = self._roots.get(key), 0, None
        while node is not None and depth < len(prompt) and (child := node.children.get(int(prompt[depth]))) is not None:
            common = common_length(child.tokens[: child.length], prompt[depth:])
            depth += common
            holder = next(iter(child.holders))
            if common < child.length:
                break
            node = child
        return Match(depth, holder)

    def begin(self, seq_id: int, prompt: Tokens, length: int, *, key: int = 0) -> None:
        """Sequence `seq_id` now holds the first `length` tokens of `prompt`, which `match` with this key has found held."""
        if seq_id in self._ends:
            raise ValueError(f"sequence {seq_id} already holds cells")
        node, depth = self._roots.setdefault(key, Node(None)), 0
        while depth < length:
            child = node.children[int(prompt[depth])]
            if depth + child.length > length:
                child = self._split(child, length - depth)
            child.holders.add(seq_id)
            node, depth = child, depth + child.length
        self._ends[seq_id] = node

    def join(self, seq_id: int, holder: int) -> None:
        """Sequence `seq_id` now holds all that `holder` does, and its very cells."""
        if seq_id in self._ends:
            raise ValueError(f"sequence {seq_id} already holds cells")
        node = self._ends[seq_id] = self._ends[holder]
        while node.parent is not None:
            node.holders.add(seq_id)
            node = node.parent

    def end(self, seq_id: int) -> Node:
        """The run its last cell is in; sequences with the same have all their cells, and so their tokens, in common."""
        return self._ends[seq_id]

    def extend(self, seq_ids: Sequence[int], tokens: Tokens) -> None:
        """These sequences, which have the same `end`, share new cells for `tokens` behind it."""
        node = self._ends[seq_ids[0]]
        is_theirs = node.parent is not None and not node.children and len(node.holders) == len(seq_ids)
        if not (is_theirs and node.holders.issuperset(seq_ids)):
            child = Node(node, holders=set(seq_ids))
            node.children.setdefault(int(tokens[0]), child)
            node = child
            self._ends.update(dict.fromkeys(seq_ids, child))
        node.append(tokens)
        self.cells += len(tokens)

    def release(self, seq_id: int) -> None:
        """Sequence `seq_id` lets go of its cells; those nobody else holds are free."""
        node = self._ends.pop(seq_id, None)
        while node is not None and node.parent is not None:
            node.holders.discard(seq_id)
            if not node.holders:
                self._remove(node)
            node = node.parent

    def forget(self, key: int) -> None:
        """This adapter, of which nothing is held any more, does not come back."""
        self._roots.pop(key, None)

    def cells_among(self, seq_id: int, seq_ids: Set[int]) -> int:
        """Cells of this sequence that none but `seq_ids`, of which it is one, hold."""
        total, node = 0, self._ends.get(seq_id)
        while node is not None and node.parent is not None and node.holders <= seq_ids:
            total += node.length
            node = node.parent
        return total

    def held_by(self, seq_ids: set[int]) -> int:
        """Cells held by any of these sequences."""
        return sum(node.length for node in self._nodes() if not seq_ids.isdisjoint(node.holders))

    def _nodes(self) -> set[Node]:
        found: set[Node] = set()
        for node in self._ends.values():
            while node.parent is not None and node not in found:
                found.add(node)
                node = node.parent
        return found

    def _split(self, node: Node, at: int) -> Node:
        """Cut a run in two; the upper part, returned, takes the node's place, the node keeps its holders' ends."""
        assert node.parent is not None
        upper = Node(node.parent, node.tokens[:at].copy(), at, set(node.holders))
        lower_tokens = node.tokens[at : node.length].copy()
        upper.children[int(lower_tokens[0])] = node
        node.parent.children[int(upper.tokens[0])] = upper
        node.parent, node.tokens, node.length = upper, lower_tokens, len(lower_tokens)
        return upper

    def _remove(self, node: Node) -> None:
        assert node.parent is not None
        self.cells -= node.length
        siblings = node.parent.children
        if siblings.get(int(node.tokens[0])) is node:
            del siblings[int(node.tokens[0])]


def common_length(held: Tokens, wanted: Tokens) -> int:
    """Of the common prefix of two runs of tokens."""
    size = min(len(held), len(wanted))
    differs = held[:size] != wanted[:size]
    return int(differs.argmax()) if differs.any() else size
