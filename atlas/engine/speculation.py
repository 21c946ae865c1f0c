"""Speculative decoding: what is guessed, how far, and when it is better left alone.

A step of few rows has time to spare: tokens that are guessed and turn out right are had for what a further row costs. At
`ROWS_OFF` rows there is nothing to spare any more, and nothing is guessed. Guesses that cost nothing to make are compared with
what is said even if they are not computed, so it is known when to begin.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from atlas.engine.drafts import Drafter, Guess, Wanted
from atlas.engine.gain import Offer, RowCosts, Share, best_lengths
from atlas.engine.runner import Vocab
from atlas.engine.scheduler import Draft, Part
from atlas.engine.sequence import Sequence

ROWS_OFF = (
    8  # chosen: up to here llama.cpp's CUDA kernels read the weights once for all rows, and one answer's gain is another's wait
)
ROW_SHARE_CPU, ROW_SHARE_GPU = 0.5, 0.05  # of a step of one row, until measured; chosen
FIRST_CHANCE = 0.6  # that a guess of a kind is right, until it is known; chosen
KIND_MEMORY, SEQUENCE_MEMORY = 500.0, 12.0  # tokens; chosen
KIND_WEIGHT, SEQUENCE_WEIGHT = 4.0, 3.0  # tokens; chosen
PROBE_STEPS = 128  # so long nothing was computed that could have been: try, for what is known of costs and chances gets old
NOTHING = Guess((), "")


@dataclass(slots=True)
class Record:
    """How one drafter's guesses for one sequence turn out, and its last one, made when the sequence had `length` tokens."""

    share: Share = field(default_factory=Share)
    guess: Guess = NOTHING
    length: int = 0


class Chances:
    """How likely guesses of one drafter are right: by their kind, and by sequence."""

    def __init__(self) -> None:
        self._kinds: defaultdict[str, Share] = defaultdict(Share)
        self._records: WeakKeyDictionary[Sequence, Record] = WeakKeyDictionary()

    def settle(self, sequence: Sequence) -> None:
        """Compare the last guess with what has been said since, whether or not it was computed."""
        record = self._records.get(sequence)
        if record is None or not record.guess.tokens:
            return
        said = sequence.ids[record.length : record.length + len(record.guess.tokens)]
        hits = _num_alike(record.guess.tokens, said.tolist())
        tries = hits + (hits < len(said))
        self._kinds[record.guess.kind].note(hits, tries, memory=KIND_MEMORY)
        record.share.note(hits, tries, memory=SEQUENCE_MEMORY)
        record.guess = NOTHING

    def remember(self, sequence: Sequence, guess: Guess) -> None:
        record = self._records.setdefault(sequence, Record())
        record.guess, record.length = guess, sequence.length

    def of(self, sequence: Sequence, kind: str) -> float:
        prior = self._kinds[kind].given(FIRST_CHANCE, weight=KIND_WEIGHT)
        record = self._records.get(sequence)
        return prior if record is None else record.share.given(prior, weight=SEQUENCE_WEIGHT)


class Source:
    """A drafter, and what is known of it."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        self.chances = Chances()

    def offer(self, sequence: Sequence, most: int, kind: str) -> Offer:
        return Offer(most, self.chances.of(sequence, kind) if most > 0 else 0.0, self.drafter.cost_s)


class Speculator:
    """Decides on the drafts of each step. Owned by the engine thread.

    Args:
        lookup: guesses that are free, hence made for every sequence.
        model: guesses that take time, hence made as long as is worth it, where the free ones are less likely to be right.
        costs: of rows, as they are learnt.
        max_tokens: of one draft.
    """

    def __init__(self, lookup: Drafter, model: Drafter | None, vocab: Vocab, *, costs: RowCosts, max_tokens: int) -> None:
        self._lookup, self._model = Source(lookup), Source(model) if model is not None else None
        self._eog, self._max_tokens = vocab.eog, max_tokens
        self._costs = costs
        self._num_idle = 0

    def drafts(self, decode: list[Part], room: int) -> list[Draft]:
        """One for each of these parts, which have one token each; `room` tokens at most together."""
        if not 0 < len(decode) < ROWS_OFF:
            return [()] * len(decode)
        wanted = [Wanted(part.sequence, min(self._max_tokens, part.sequence.num_left - 1)) for part in decode]
        guesses = self._looked_up(wanted)
        offers = [self._offer(each, guess) for each, guess in zip(wanted, guesses, strict=True)]
        lengths = self._lengths(offers, rows=len(decode), room=room)
        self._ask_model(wanted, offers, lengths, guesses)
        return [guess.tokens[:length] for guess, length in zip(guesses, lengths, strict=True)]

    def close(self) -> None:
        if self._model is not None:
            self._model.drafter.close()

    def _looked_up(self, wanted: list[Wanted]) -> list[Guess]:
        for each in wanted:
            self._lookup.chances.settle(each.sequence)
        guesses = [self._cut(guess) for guess in self._lookup.drafter.propose(wanted)]
        for each, guess in zip(wanted, guesses, strict=True):
            self._lookup.chances.remember(each.sequence, guess)
        return guesses

    def _offer(self, wanted: Wanted, guess: Guess) -> Offer:
        """The free guess, or the model's if that is likelier to be right."""
        found = self._lookup.offer(wanted.sequence, len(guess.tokens), guess.kind)
        if self._model is None:
            return found
        self._model.chances.settle(wanted.sequence)
        asked = self._model.offer(wanted.sequence, wanted.most, self._model.drafter.kind)
        return max(found, asked, key=lambda offer: offer.chance)

    def _lengths(self, offers: list[Offer], *, rows: int, room: int) -> list[int]:
        if not self._costs.is_known or not any(offer.most for offer in offers):
            return [0] * len(offers)
        lengths = best_lengths(offers, rows=rows, room=room, seconds=self._costs.seconds)
        self._num_idle = 0 if any(lengths) else self._num_idle + 1
        if self._num_idle >= PROBE_STEPS:
            self._num_idle = 0
            lengths = best_lengths(offers, rows=rows, room=room, seconds=self._costs.seconds, least_gain=0.0)
        return lengths

    def _ask_model(self, wanted: list[Wanted], offers: list[Offer], lengths: list[int], guesses: list[Guess]) -> None:
        """Put the model's guesses where they were chosen."""
        if self._model is None:
            return
        chosen = [at for at, offer in enumerate(offers) if lengths[at] and offer.cost_s == self._model.drafter.cost_s]
        asked = [Wanted(wanted[at].sequence, lengths[at]) for at in chosen]
        for at, guess in zip(chosen, self._model.drafter.propose(asked) if asked else [], strict=True):
            guesses[at] = self._cut(guess)
            self._model.chances.remember(wanted[at].sequence, guesses[at])

    def _cut(self, guess: Guess) -> Guess:
        """An end needs no cell, and nothing follows it."""
        ends = [at for at, token in enumerate(guess.tokens) if token in self._eog]
        return Guess(guess.tokens[: ends[0]], guess.kind) if ends else guess


def _num_alike(guess: Draft, said: list[int]) -> int:
    """How many tokens were right before the first that was not."""
    for at, (token, other) in enumerate(zip(guess, said, strict=False)):
        if token != other:
            return at
    return len(said)
