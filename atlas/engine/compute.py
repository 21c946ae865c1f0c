"""What a step computes: rows into the batch, one decode, a token from each of its outputs.

A decode row may carry drafts: guesses at the tokens that follow, each in a row of its own behind it. Tokens are drawn position by
position, with the request's own sampler, as long as what was drawn is what had been guessed; so they are the tokens that one row
a step would have given, up to the order of float additions. What lies behind the first wrong guess is taken out of the context.
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
        self.num_drafted = self.num_accepted = 0
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
        rounds = [decode, *_draft_rounds(decode)]
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
                    [_placed(part) for part in parts],
                    [part.start + depth for part in parts],
                    [part.draft[depth - 1] if depth else int(part.tokens[0]) for part in parts],
                )
        for part in prefill:
            batch.add(_placed(part), part.start, part.tokens, output=part.is_last)

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
            rows = [row for row, part in enumerate(parts) if _is_right(part, depth)]
            if not rows:
                break
            if states is not None:
                _note_states([parts[row] for row in rows], states[first:][rows])
            block = logits[first : first + len(parts)]
            taken += self._draw([parts[row] for row in rows], block if len(rows) == len(parts) else block[rows], depth)
            first += len(parts)
        return taken

    def _draw(self, parts: list[Part], logits: Rows, depth: int) -> list[Taken]:
        """A token for each; whoever has drawn what was guessed next has its cell already."""
        wants = [part.sequence.want(row) for part, row in zip(parts, logits, strict=True)]
        taken = []
        for part, (choice, exact) in zip(parts, sample(logits, wants, self._scratch), strict=True):
            step = part.sequence.take(choice, exact)
            taken.append(Taken(part.sequence, step))
            if depth < len(part.draft) and step.generation is None and part.sequence.last_token == part.draft[depth]:
                self._scheduler.accepted(part.sequence)
                self.num_accepted += 1
        return taken

    def _drop_refused(self, decode: list[Part]) -> None:
        """Rows behind a wrong guess, or behind the end, leave the context."""
        for part in decode:
            if part.draft:
                self.num_drafted += len(part.draft)
                if part.sequence.num_held <= part.start + len(part.draft):
                    self._runner.drop(_placed(part), part.sequence.num_held)


def _draft_rounds(decode: list[Part]) -> list[list[Part]]:
    """Who has a first draft, who a second, ..."""
    longest = max((len(part.draft) for part in decode), default=0)
    return [[part for part in decode if len(part.draft) >= depth] for depth in range(1, longest + 1)]


def _is_right(part: Part, depth: int) -> bool:
    """Whether all guesses up to this depth were: what is computed there follows from what was drawn."""
    return depth == 0 or part.sequence.num_held > part.start + depth


def _note_states(parts: list[Part], states: Rows) -> None:
    for part, state in zip(parts, states, strict=True):
        if part.sequence.job.prompt.features:
            part.sequence.note_state(state)


def _placed(part: Part) -> int:
    """The sequence id of rows that are computed now."""
    assert part.sequence.seq_id is not None
    return part.sequence.seq_id
