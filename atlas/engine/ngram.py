"""Guesses by looking back: what followed the last time that these tokens stood here.

Rewriting and editing copy long spans of the prompt, and candidates of one prompt copy from each other. There is no index: the
texts are arrays, a few thousand numbers are compared in microseconds, and nothing has to be taken back with a refused draft.
"""

from __future__ import annotations

import numpy as np

from atlas.engine.drafts import Guess, Wanted
from atlas.engine.runner import Tokens
from atlas.engine.sequence import Sequence

MATCH_TOKENS = 2  # as many must agree at least; chosen: after one there are too many ways to go on
LONGEST_TOKENS = 32  # agreement beyond it makes no guess better; chosen
NUM_TRIED = 16  # places in one text, the last ones; chosen
NOTHING = Guess((), "")

_KINDS = [f"ngram-{length if length < 4 else length.bit_length() + 1}" for length in range(LONGEST_TOKENS + 1)]
_back = np.arange(LONGEST_TOKENS)


class NgramDrafter:
    """Looks in the prompt and the answer so far, then in the answers of the other candidates of the prompt."""

    kind = "ngram"

    def propose(self, wanted: list[Wanted]) -> list[Guess]:
        sequences = [each.sequence for each in wanted]
        return [_guess(each.sequence, _answers_beside(each.sequence, sequences), each.most) for each in wanted]

    def close(self) -> None:
        """Nothing is held."""


def _guess(sequence: Sequence, others: list[Tokens], most: int) -> Guess:
    own = sequence.ids
    length, end, text = *longest_match(own, own), own
    for other in others:
        if length >= LONGEST_TOKENS:
            break
        found, found_end = longest_match(other, own)
        if found > length:
            length, end, text = found, found_end, other
    if length < MATCH_TOKENS:
        return NOTHING
    following = text[end : end + most]
    if text is own and len(following) < most:
        following = np.resize(following, most)  # a text that repeats itself goes round
    return Guess(tuple(following.tolist()), _KINDS[length])


def longest_match(text: Tokens, own: Tokens) -> tuple[int, int]:
    """Over how many tokens `own` ends like some beginning of `text` that something follows, and how long that beginning is.

    Of equally long ones the last; (0, 0) if none agrees over MATCH_TOKENS.
    """
    if len(text) <= MATCH_TOKENS or len(own) < MATCH_TOKENS:
        return 0, 0
    at = np.flatnonzero(text[1:-1] == own[-1])  # `at + 2` is the length of such a beginning
    at = at[text[at] == own[-2]]
    if len(own) > MATCH_TOKENS:
        further = at[at > 0]
        further = further[text[further - 1] == own[-3]]
        at = further if len(further) else at
    at = at[-NUM_TRIED:]
    if not len(at):
        return 0, 0
    ends = at[::-1] + MATCH_TOKENS
    width = min(LONGEST_TOKENS, len(own))
    places = ends[:, None] - 1 - _back[:width]
    agree = (text[np.maximum(places, 0)] == own[: -width - 1 : -1]) & (places >= 0)
    lengths = np.where(agree.all(axis=1), width, agree.argmin(axis=1))
    best = int(lengths.argmax())
    return int(lengths[best]), int(ends[best])


def _answers_beside(sequence: Sequence, sequences: list[Sequence]) -> list[Tokens]:
    job = sequence.job
    if job.prompt.n == 1:
        return []
    running = [other.answer for other in sequences if other.job is job and other is not sequence]
    return running + list(job.answers)
