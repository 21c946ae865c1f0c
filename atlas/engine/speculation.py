"""Speculative decoding: what is guessed, how far, and when it is better left alone.

A step of few rows has time to spare: tokens that are guessed and turn out right are had for what a further row costs. At
`ROWS_OFF` rows there is nothing to spare any more, and nothing is guessed. Guesses that cost nothing to make are compared with
what is said even if they are not computed, so it is known when to begin.
"""

from __future__ import annotations

from collections import defaultdict

from atlas.engine.drafts import Drafter, Guess, TimedDrafter, Wanted
from atlas.engine.gain import LEAST_GAIN, Offer, Record, RowCosts, Share, best_lengths
from atlas.engine.plan import Draft, Part
from atlas.engine.runner import Vocab
from atlas.engine.sequence import Sequence

ROWS_OFF = 8  # chosen: for up to 8 rows llama.cpp has CUDA kernels of their own, to which a further row is nearly free
ROW_SHARE_CPU, ROW_SHARE_GPU = 0.5, 0.05  # of a step of one row, until measured; chosen
FIRST_CHANCE = 0.6  # that a guess of a kind is right, until it is known; chosen
KIND_MEMORY, SEQUENCE_MEMORY = 500.0, 12.0  # tokens; chosen
KIND_WEIGHT, SEQUENCE_WEIGHT = 4.0, 3.0  # tokens; chosen
# So long nothing was computed that could have been: try, for what is known of costs and chances is a belief first, and gets old.
FIRST_PROBE_STEPS, PROBE_STEPS = 8, 128  # the first pause, doubled after each; chosen
LONGEST_PAUSE = 7  # steps without a look for what may be copied; chosen
HIGHEST_CHANCE = 0.98  # no guess is surer
NOTHING = Guess((), "")


class Source:
    """A drafter, and how likely its guesses are right: by their kind, and by sequence."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        self._kinds: defaultdict[str, Share] = defaultdict(Share)

    def record(self, sequence: Sequence) -> Record:
        """What is known of guesses for this sequence, its last one compared with what has been said since, computed or not."""
        record = sequence.records.get(self.drafter.kind)
        if record is None:
            record = sequence.records[self.drafter.kind] = Record()
        if record.tokens:
            self._settle(record, sequence.ids[record.length : record.length + len(record.tokens)].tolist())
        return record

    def _settle(self, record: Record, said: list[int]) -> None:
        hits = _num_alike(record.tokens, said)
        tries = hits + (hits < len(said))
        self._kinds[record.kind].note(hits, tries, memory=KIND_MEMORY)
        record.share.note(hits, tries, memory=SEQUENCE_MEMORY)
        record.tokens = ()

    def chance(self, record: Record, kind: str) -> float:
        prior = self._kinds[kind].given(FIRST_CHANCE, weight=KIND_WEIGHT)
        return min(HIGHEST_CHANCE, record.share.given(prior, weight=SEQUENCE_WEIGHT))


class Speculator:
    """Decides on the drafts of each step. Owned by the engine thread.

    Args:
        lookup: guesses that are free, hence made for every sequence.
        model: guesses that take time, hence made as long as is worth it, where the free ones are less likely to be right.
        costs: of rows, as they are learnt.
        max_tokens: of one draft.
    """

    def __init__(self, lookup: Drafter, model: TimedDrafter | None, vocab: Vocab, *, costs: RowCosts, max_tokens: int) -> None:
        self._lookup, self._model = Source(lookup), Source(model) if model is not None else None
        self._model_cost_s = model.cost_s if model is not None else None
        self._eog, self._max_tokens = vocab.eog, max_tokens
        self._costs = costs
        self._num_idle, self._probe_steps = 0, FIRST_PROBE_STEPS

    def drafts(self, decode: list[Part], room: int) -> list[Draft]:
        """One for each of these parts, which have one token each; `room` tokens at most together."""
        if not 0 < len(decode) < ROWS_OFF:
            return [()] * len(decode)
        wanted = [Wanted(part.sequence, min(self._max_tokens, part.sequence.num_left - 1)) for part in decode]
        guesses = self._looked_up(wanted)
        offers = [self._offer(each, guess) for each, guess in zip(wanted, guesses, strict=True)]
        lengths = self._lengths(offers, rows=len(decode), room=room)
        self._ask_model(wanted, offers, lengths, guesses)
        for each, length in zip(wanted, lengths, strict=True):
            self._pause(each.sequence, was_worth_it=length > 0)
        return [guess.tokens[:length] for guess, length in zip(guesses, lengths, strict=True)]

    def close(self) -> None:
        if self._model is not None:
            self._model.drafter.close()

    def _looked_up(self, wanted: list[Wanted]) -> list[Guess]:
        """Guesses that are free; not at every step for whom there is nothing to be found."""
        records = [self._lookup.record(each.sequence) for each in wanted]
        looking = [at for at, record in enumerate(records) if _is_due(record)]
        guesses = [NOTHING] * len(wanted)
        if not looking:
            return guesses
        found = self._lookup.drafter.propose([wanted[at] for at in looking])
        for at, guess in zip(looking, found, strict=True):
            guesses[at] = guess = self._cut(guess) if guess.tokens else guess
            _remember(records[at], guess, wanted[at].sequence)
        return guesses

    def _offer(self, wanted: Wanted, guess: Guess) -> Offer:
        """The free guess, or the model's if that is likelier to be right."""
        chance = self._lookup.chance(wanted.sequence.records[self._lookup.drafter.kind], guess.kind) if guess.tokens else 0.0
        found = Offer(len(guess.tokens), chance, None)
        if self._model is None or wanted.most <= 0:
            return found
        asked = self._model.chance(self._model.record(wanted.sequence), self._model.drafter.kind)
        return found if chance > asked else Offer(wanted.most, asked, self._model_cost_s)

    def _lengths(self, offers: list[Offer], *, rows: int, room: int) -> list[int]:
        self._num_idle += 1
        if not self._costs.is_known or not any(offer.most for offer in offers):
            return [0] * len(offers)
        room = min(room, self._costs.within_reach - rows)
        is_probe = self._num_idle >= self._probe_steps
        least_gain = 0.0 if is_probe else LEAST_GAIN
        lengths = best_lengths(offers, rows=rows, room=room, seconds=self._costs.seconds, least_gain=least_gain)
        if any(lengths):
            self._num_idle = 0
            self._probe_steps = min(PROBE_STEPS, (1 + is_probe) * self._probe_steps)
        return lengths

    def _ask_model(self, wanted: list[Wanted], offers: list[Offer], lengths: list[int], guesses: list[Guess]) -> None:
        """Put the model's guesses where they were chosen, and it has some."""
        if self._model is None:
            return
        chosen = [at for at, offer in enumerate(offers) if lengths[at] and offer.cost_s is not None]
        asked = [Wanted(wanted[at].sequence, lengths[at]) for at in chosen]
        for at, guess in zip(chosen, self._model.drafter.propose(asked) if asked else [], strict=True):
            if guess.tokens:
                guesses[at] = self._cut(guess)
                _remember(self._model.record(wanted[at].sequence), guesses[at], wanted[at].sequence)

    def _pause(self, sequence: Sequence, *, was_worth_it: bool) -> None:
        """The longer nothing was worth computing, the rarer is a look: what is copied is longer than what is missed of it."""
        record = sequence.records[self._lookup.drafter.kind]
        record.num_missed = 0 if was_worth_it else record.num_missed + 1
        if record.pause < 0:
            record.pause = min(LONGEST_PAUSE, record.num_missed // 4)

    def _cut(self, guess: Guess) -> Guess:
        """An end needs no cell, and nothing follows it."""
        ends = [at for at, token in enumerate(guess.tokens) if token in self._eog]
        return Guess(guess.tokens[: ends[0]], guess.kind) if ends else guess


def _is_due(record: Record) -> bool:
    """Whether to look now."""
    record.pause -= 1
    return record.pause < 0


def _remember(record: Record, guess: Guess, sequence: Sequence) -> None:
    record.tokens, record.kind, record.length = guess.tokens, guess.kind, sequence.length


def _num_alike(guess: Draft, said: list[int]) -> int:
    """How many tokens were right before the first that was not."""
    for at, (token, other) in enumerate(zip(guess, said, strict=False)):
        if token != other:
            return at
    return len(said)
