"""Guesses by a small model with the same vocabulary, in a context of its own.

It is kept in step lazily: what a sequence has said since the last guess is computed when the next one is wanted, a wrong guess is
taken out then. Sequences that begin alike share cells, as in the large model's context.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple
from weakref import ReferenceType, ref

import numpy as np

from atlas.engine.drafts import Guess, Wanted
from atlas.engine.radix import common_length
from atlas.engine.runner import DecodeResult, Model, Runner, Tokens, Vocab
from atlas.engine.sequence import Sequence
from atlas.errors import ModelFileError

SLOTS = 16  # sequences in the draft's context: twice as many as are ever guessed for; the others are prefixes for new ones
WORTH_READING = 16  # tokens of a text are read, at most, for each that may still be guessed; chosen
COST_RATE = 0.1


class Slot:
    """One sequence of the draft's context: tokens, (length,), that have cells, and whose they are."""

    def __init__(self, seq_id: int) -> None:
        self.seq_id = seq_id
        self.owner: ReferenceType[Sequence] | None = None
        self.used_at = 0
        self._ids = np.empty(0, np.int32)
        self.length = 0

    @property
    def ids(self) -> Tokens:
        return self._ids[: self.length]

    def append(self, tokens: Tokens | list[int]) -> None:
        end = self.length + len(tokens)
        if end > len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty(end, np.int32)])
        self._ids[self.length : end] = tokens
        self.length = end

    def is_of(self, sequence: Sequence) -> bool:
        return self.owner is not None and self.owner() is sequence


class Rows(NamedTuple):
    """The next tokens of a slot; `is_last` if a guess at the one after them is wanted."""

    slot: Slot
    tokens: Tokens | list[int]
    is_last: bool


class ModelDrafter:
    """Owned by the engine thread, and so is the runner, which nobody else uses.

    Args:
        chunk_tokens: how much of a prompt is read per step beside running answers.
        first_cost_s: of one token, until it has been measured, as a function called at the first guess.
    """

    kind = "model"

    def __init__(self, model: Model, runner: Runner, *, chunk_tokens: int, first_cost_s: Callable[[], float]) -> None:
        self._model, self._runner, self._chunk_tokens = model, runner, chunk_tokens
        self._slots = [Slot(seq_id) for seq_id in range(runner.num_sequences)]
        self._now = 0
        self._token_s: float | None = None
        self._first_cost_s = first_cost_s

    def cost_s(self, length: int) -> float:
        return length * (self._first_cost_s() if self._token_s is None else self._token_s)

    def propose(self, wanted: list[Wanted]) -> list[Guess]:
        self._now += 1
        slots = {at: self._placed(each.sequence) for at, each in enumerate(wanted) if self._is_worth(each.sequence)}
        found: list[list[int]] = [[] for _ in wanted]
        going = self._catch_up(slots, wanted)
        while going:
            for at, token in zip(going, self._best(), strict=True):
                found[at].append(token)
            going = [at for at in going if len(found[at]) < wanted[at].most and found[at][-1] not in self._model.vocab.eog]
            if not self._timed([Rows(slots[at], found[at][-1:], True) for at in going]):
                break
        return [Guess(tuple(tokens), self.kind) for tokens in found]

    def close(self) -> None:
        self._runner.close()
        self._model.close()

    def _is_worth(self, sequence: Sequence) -> bool:
        behind = sequence.length - max((slot.length for slot in self._slots if slot.is_of(sequence)), default=0)
        return behind <= WORTH_READING * sequence.num_left

    def _placed(self, sequence: Sequence) -> Slot:
        """The slot of a sequence, which holds no more than what the sequence begins with; all but its last token at most."""
        slot = next((slot for slot in self._slots if slot.is_of(sequence)), None)
        if slot is None:
            slot = self._taken(sequence)
        slot.used_at = self._now
        self._cut(slot, common_length(slot.ids, sequence.ids[:-1]))
        return slot

    def _taken(self, sequence: Sequence) -> Slot:
        """The slot that was used longest ago, with the cells of whatever slot begins most like the sequence."""
        slot = min(self._slots, key=lambda slot: slot.used_at)
        alike = max(self._slots, key=lambda slot: common_length(slot.ids, sequence.ids))
        slot.owner = ref(sequence)
        if alike is not slot:
            self._cut(slot, 0)
            length = common_length(alike.ids, sequence.ids)
            self._runner.share(alike.seq_id, slot.seq_id, length)
            slot.append(alike.ids[:length])
        return slot

    def _cut(self, slot: Slot, length: int) -> None:
        if length < slot.length:
            self._runner.drop(slot.seq_id, length)
            slot.length = length

    def _catch_up(self, slots: dict[int, Slot], wanted: list[Wanted]) -> list[int]:
        """Compute what has been said since, as far as it goes in a step; returns who has got there."""
        budget, rows, done = self._chunk_tokens, [], []
        for at, slot in slots.items():
            behind = wanted[at].sequence.ids[slot.length :]
            if budget > 0:
                rows.append(Rows(slot, behind[:budget], len(behind) <= budget))
                done += [at] if len(behind) <= budget else []
                budget -= len(behind)
        return done if self._compute(rows) else []

    def _timed(self, rows: list[Rows]) -> bool:
        started = time.perf_counter()
        if not (rows and self._compute(rows)):
            return False
        took_s = time.perf_counter() - started
        self._token_s = took_s if self._token_s is None else self._token_s + COST_RATE * (took_s - self._token_s)
        return True

    def _compute(self, rows: list[Rows]) -> bool:
        """False, and nothing has changed, if there are too few cells even without the slots that are not asked for."""
        batch = self._runner.batch
        batch.clear()
        for slot, tokens, is_last in rows:
            batch.add((slot.seq_id,), slot.length, tokens, output=is_last)
        while rows and (result := self._runner.decode()) is not DecodeResult.DONE:
            if result is DecodeResult.ABORTED or not self._evict():
                return False
        for slot, tokens, _ in rows:
            slot.append(tokens)
        return bool(rows)

    def _evict(self) -> bool:
        """Empty the slot that was used longest ago, unless it is one of those asked for."""
        held = [slot for slot in self._slots if slot.length and slot.used_at < self._now]
        for slot in sorted(held, key=lambda slot: slot.used_at)[:1]:
            self._cut(slot, 0)
        return bool(held)

    def _best(self) -> list[int]:
        return [int(token) for token in self._runner.logits().argmax(axis=1)]


def check_vocabulary(draft: Model, target: Model) -> None:
    """Raises ModelFileError, naming the first difference, unless a token means the same to both."""
    for what, theirs, ours in _differences(draft.vocab, target.vocab):
        raise ModelFileError(
            f"engine.draft_model {draft.path} has {what} {theirs}, {target.path.name} {ours}: tokens of one would be wrong to the"
            " other; name a draft of the same family, or set engine.speculation to 'ngram' or 'off'"
        )


def _differences(draft: Vocab, target: Vocab) -> Iterator[tuple[str, object, object]]:
    for what, theirs, ours in (
        ("a vocabulary of", draft.size, target.size),
        ("a first token, if any, of", draft.bos if draft.adds_bos else None, target.bos if target.adds_bos else None),
        ("the end-of-answer tokens", sorted(draft.eog), sorted(target.eog)),
    ):
        if theirs != ours:
            yield what, theirs, ours
    for token in range(min(draft.size, target.size)):
        theirs_raw, ours_raw = draft.raw_piece(token, special=True), target.raw_piece(token, special=True)
        if theirs_raw != ours_raw:
            yield f"as token {token}", repr(theirs_raw), repr(ours_raw)
