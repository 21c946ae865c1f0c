"""What a step computes: rows into the batch, one decode, tokens from each of its outputs.

Several candidates may share a row; each draws from its logits, with its own sampler.

A decode row may carry drafts: guesses at the tokens that follow, each in a row of its own behind it. Tokens are drawn position by
position, as long as what was drawn is what had been guessed; so they are the tokens that one row a step would have given, up to
the order of float additions. What lies behind a candidate's first wrong guess is taken out of its part of the context.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from atlas.engine.chain import Candidates
from atlas.engine.plan import Part, Plan
from atlas.engine.runner import DecodeResult, Rows, Runner
from atlas.engine.sampler import sample
from atlas.engine.scheduler import Scheduler
from atlas.engine.sequence import Sequence, Step
from atlas.errors import EngineFailed


class Taken(NamedTuple):
    """A token that a candidate has drawn, and what came of it."""

    sequence: Sequence
    step: Step


class Computer:
    """Computes planned rows. Owned by the engine thread; its counters may be read by any."""

    def __init__(self, runner: Runner, scheduler: Scheduler) -> None:
        self._runner, self._scheduler = runner, scheduler
        self._scratch = Candidates()
        self._attached = 0  # key of the adapter that the context computes with
        self.num_switches = 0
        self.num_drafted = self.num_accepted = self.num_shared = 0
        self.decode_s = 0.0

    def compute(self, plan: Plan) -> list[Taken]:
        """In the order they were drawn; several of a candidate whose draft was right, of which only the last may end it."""
        self._attach((plan.decode or plan.prefill)[0].sequence)
        if any(part.sequence.job.prompt.features for part in plan.decode):
            # with hidden states on, C makes every row an output: never beside prefill rows
            return self._compute(plan.decode, [], features=True) + self._compute([], plan.prefill)
        return self._compute(plan.decode, plan.prefill)

    def forget_adapter(self, key: int) -> None:
        """Nothing of the context hangs on this adapter from here on."""
        if self._attached == key:
            self._runner.attach(None, 0.0)
            self._attached = 0

    def _attach(self, sequence: Sequence) -> None:
        """Have the step computed with the adapter of its rows."""
        adapter = sequence.job.adapter
        if sequence.key != self._attached:
            self._runner.attach(adapter and adapter.handle, adapter.scale if adapter else 0.0)
            self._attached = sequence.key
            self.num_switches += 1

    def _compute(self, decode: list[Part], prefill: list[Part], *, features: bool = False) -> list[Taken]:
        if not (decode or prefill):
            return []
        rounds = [decode, *_draft_rounds(decode)] if any(part.draft for part in decode) else [decode]
        self._fill_batch(rounds, prefill)
        if not self._decode(features=features):
            return []
        for part in (*decode, *prefill):
            self._scheduler.computed(part)
        rounds[0] = [*decode, *(part for part in prefill if part.is_last)]
        taken = self._sample(rounds, features=features) if rounds[0] else []
        self._drop_refused(decode)
        return taken

    def _fill_batch(self, rounds: list[list[Part]], prefill: list[Part]) -> None:
        """Round by round, so that what is sampled together lies together; drafts are never beside prefill rows."""
        batch = self._runner.batch
        batch.clear()
        for depth, parts in enumerate(rounds):
            if parts:
                batch.add_each(
                    [part.seq_ids for part in parts],
                    [part.start + depth for part in parts],
                    [part.draft[depth - 1] if depth else int(part.tokens[0]) for part in parts],
                )
        for part in prefill:
            batch.add(part.seq_ids, part.start, part.tokens, output=part.is_last)

    def _decode(self, *, features: bool) -> bool:
        started = time.perf_counter()
        result = self._runner.decode(features=features)
        self.decode_s += time.perf_counter() - started
        if result is DecodeResult.FULL:
            raise EngineFailed("llama.cpp found no room for rows that were counted to fit")
        return result is DecodeResult.DONE

    def _sample(self, rounds: list[list[Part]], *, features: bool) -> list[Taken]:
        taken: list[Taken] = []
        logits = self._runner.logits()
        states = self._runner.states() if features else None
        first = 0
        for depth, parts in enumerate(rounds):
            drawing = [(row, sequence) for row, part in enumerate(parts) for sequence in _right(part, depth)]
            if not drawing:
                break
            if states is not None:
                _note_states(drawing, states[first:])
            taken += self._draw(drawing, logits[first : first + len(parts)])
            self._accept(parts, depth)
            first += len(parts)
        return taken

    def _draw(self, drawing: list[tuple[int, Sequence]], logits: Rows) -> list[Taken]:
        """A token for each, from its row."""
        rows = [row for row, _ in drawing]
        self.num_shared += len(rows) - len(set(rows))
        if not set(rows).issuperset(range(len(logits))):
            logits, rows = logits[rows], list(range(len(rows)))  # behind some drafts nothing is to be drawn
        wants = [sequence.want(logits[row]) for row, (_, sequence) in zip(rows, drawing, strict=True)]
        return [
            Taken(sequence, sequence.take(choice, exact))
            for (_, sequence), (choice, exact) in zip(drawing, sample(logits, wants, self._scratch, rows), strict=True)
        ]

    def _accept(self, parts: list[Part], depth: int) -> None:
        """Whoever has drawn what was guessed next has its cell already."""
        for part in parts:
            if depth < len(part.draft):
                right = tuple(s for s in _right(part, depth) if not s.is_ended and s.last_token == part.draft[depth])
                if right:
                    self._scheduler.accepted(right)
                    self.num_accepted += 1

    def _drop_refused(self, decode: list[Part]) -> None:
        """Rows behind a wrong guess, or behind the end, leave the context."""
        for part in decode:
            if part.draft:
                self.num_drafted += len(part.draft)
                for sequence in part.sequences:
                    if sequence.num_held <= part.start + len(part.draft):
                        self._runner.drop(sequence.placed_at, sequence.num_held)


def _draft_rounds(decode: list[Part]) -> list[list[Part]]:
    """Who has a first draft, who a second, ..."""
    longest = max((len(part.draft) for part in decode), default=0)
    return [[part for part in decode if len(part.draft) >= depth] for depth in range(1, longest + 1)]


def _right(part: Part, depth: int) -> tuple[Sequence, ...]:
    """Who has drawn all that was guessed up to this depth: what is computed there follows from it."""
    return part.sequences if depth == 0 else tuple(s for s in part.sequences if s.num_held > part.start + depth)


def _note_states(drawing: list[tuple[int, Sequence]], states: Rows) -> None:
    for row, sequence in drawing:
        if sequence.job.prompt.features:
            sequence.note_state(states[row])
