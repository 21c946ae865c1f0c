"""The prefix tree against a plain model of cells: each sequence is a list of cell ids."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from atlas.engine.radix import Match, PrefixTree

SEQUENCES = 5
prompts = st.lists(st.integers(0, 2), min_size=1, max_size=12)


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def test_a_prompt_finds_the_prefix_of_a_running_sequence() -> None:
    tree = PrefixTree()
    tree.begin(0, ids(1, 2, 3), 0)
    tree.extend((0,), ids(1, 2, 3))
    assert tree.match(ids(1, 2, 9)) == Match(2, 0)
    tree.begin(1, ids(1, 2, 9), 2)
    tree.extend((1,), ids(9))
    assert tree.cells == 4
    tree.release(0)
    assert tree.cells == 3
    assert tree.match(ids(1, 2, 3)) == Match(2, 1)


def test_sibling_tails_do_not_merge_but_both_are_counted() -> None:
    tree = PrefixTree()
    tree.begin(0, ids(7), 0)
    tree.extend((0,), ids(7))
    tree.begin(1, ids(7, 8), 1)
    tree.extend((0,), ids(8))
    tree.extend((1,), ids(8))
    assert tree.cells == 3
    assert tree.cells_among(1, {1}) == 1
    assert tree.cells_among(1, {0, 1}) == 2
    assert tree.held_by({1}) == 2


class CellModel(RuleBasedStateMachine):
    """Whatever is begun, extended and released, counts equal those of explicit cell lists, and a match is truly held."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = PrefixTree()
        self.cells: dict[int, list[tuple[int, int]]] = {}  # sequence -> (cell id, token)
        self.next_cell = 0

    @rule(prompt=prompts)
    def start(self, prompt: list[int]) -> None:
        free = [seq for seq in range(SEQUENCES) if seq not in self.cells]
        if not free:
            return
        match = self.tree.match(ids(*prompt))
        if match.length:
            assert match.holder is not None
            assert [token for _, token in self.cells[match.holder][: match.length]] == prompt[: match.length]
        shared = self.cells[match.holder][: match.length] if match.holder is not None else []
        self.tree.begin(free[0], ids(*prompt), match.length)
        self.cells[free[0]] = list(shared)
        if prompt[match.length :]:
            self.grow([free[0]], prompt[match.length :])

    @precondition(lambda self: self.cells)
    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        free = [seq for seq in range(SEQUENCES) if seq not in self.cells]
        if free:
            holder = data.draw(st.sampled_from(sorted(self.cells)))
            self.tree.join(free[0], holder)
            self.cells[free[0]] = list(self.cells[holder])

    @precondition(lambda self: self.cells)
    @rule(data=st.data(), tokens=prompts)
    def decode(self, data: st.DataObject, tokens: list[int]) -> None:
        first = data.draw(st.sampled_from(sorted(self.cells)))
        alike = [seq for seq in self.cells if self.tree.end(seq) is self.tree.end(first)]
        assert all(self.cells[seq] == self.cells[first] for seq in alike)
        self.grow(data.draw(st.lists(st.sampled_from(alike), min_size=1, unique=True)), tokens)

    @precondition(lambda self: self.cells)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(sorted(self.cells)))
        self.tree.release(seq)
        del self.cells[seq]

    def grow(self, seqs: list[int], tokens: list[int]) -> None:
        self.tree.extend(seqs, ids(*tokens))
        for token in tokens:
            for seq in seqs:
                self.cells[seq].append((self.next_cell, token))
            self.next_cell += 1

    @invariant()
    def counts_agree(self) -> None:
        held = [set(cells) for cells in self.cells.values()]
        assert self.tree.cells == len(set().union(*held))
        for seq, cells in self.cells.items():
            for among in ({seq}, {seq, *list(self.cells)[::2]}):
                others = set().union(*(set(other) for key, other in self.cells.items() if key not in among))
                assert self.tree.cells_among(seq, among) == len(set(cells) - others)


TestCellModel = CellModel.TestCase
TestCellModel.settings = settings(max_examples=60, stateful_step_count=30)


@given(prompts)
def test_an_empty_tree_matches_nothing(prompt: list[int]) -> None:
    assert PrefixTree().match(ids(*prompt)) == Match(0, None)
