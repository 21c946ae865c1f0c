"""From logits to tokens, for all draws of a step at once.

A step's logits are (rows, vocabulary) float32: 12 MB for 20 rows of Qwen3. Full C chains over them cost 10.9 ms a step, so a few
whole-batch numpy calls first keep what can be drawn: no worse than the last that top-k may choose, and within 14 nats of the
row's best (what is dropped has less than e**-14 of the best token's probability each). The C chain, or argmax, sees only that.
Few large calls also mean few GIL hand-overs.

Order, as llama.cpp: penalties and bias, grammar, top-k, top-p, min-p, temperature, draw.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence as Seq
from itertools import accumulate
from typing import NamedTuple, TypeVar

import numpy as np

from atlas.engine.chain import Candidates, Chain
from atlas.engine.grammar import Matcher
from atlas.engine.runner import Rows, Tokens
from atlas.types import Sampling

KEPT_NATS = 14.0  # times the temperature, where that is above 1; measured: same tokens as the full chain with top-k up to 100
REPETITION_WINDOW = 64  # tokens; llama.cpp's default penalty_last_n
GROUPED_FROM = 16384  # vocabulary size from which group maxima pay; chosen between 4,096 and 151,936, at which both were measured
SUMMED_GROUPS = 32  # what little a row's worst tokens add to its sum is taken from one of so many groups (measured; docs/log.md)
FEW_KEPT = 64  # tokens a row that a chain may sort: its own top-k takes less than finding the k-th best beforehand; chosen
GROUP_DEPTH = 64  # tokens per group, strided so that the maximum runs along contiguous memory
COARSE_GROUPS = 8  # groups per group of groups; chosen


class Choice(NamedTuple):
    """A drawn token and its log-probability after penalties, before temperature; 0.0 if nobody wants that.

    Over small vocabularies the sum runs over kept tokens only where these are few, which makes it too high by at most
    vocabulary * e**-14; over large ones the unlikely tokens' part is estimated (measured: within 0.1 nats, where the row is not
    flat within 0.001).
    """

    token: int
    logprob: float


class ExactLogprobs(NamedTuple):
    """Log-probabilities under the model's own distribution, over the whole vocabulary; `logits`: a copy, (vocabulary,)."""

    logits: Rows
    log_total: float
    top: Tokens

    def of(self, token: int) -> float:
        return float(self.logits[token]) - self.log_total


NOTHING_ALLOWED = Choice(-1, 0.0)  # a grammar that has come to its end


class Kept(NamedTuple):
    """The tokens that can matter, of all rows of a step behind each other, ids ascending in each.

    Attributes:
        ids: (tokens,); likewise logits.
        edges: row i has the tokens edges[i] to edges[i + 1].
        best: the highest logit of each row.
        log_totals: log-sum-exp of each row; empty if nobody wants them.
    """

    ids: Tokens
    logits: Rows
    edges: list[int]
    best: list[float]
    log_totals: list[float]

    def of(self, rows: Seq[int]) -> Kept:
        """These rows, some of them several times: a chain overwrites what it draws from."""
        parts = [slice(*self.edges[row : row + 2]) for row in rows]
        return Kept(
            np.concatenate([self.ids[part] for part in parts]),
            np.concatenate([self.logits[part] for part in parts]),
            [0, *accumulate(part.stop - part.start for part in parts)],
            [self.best[row] for row in rows],
            [self.log_totals[row] for row in rows] if self.log_totals else [],
        )


class Recommended(NamedTuple):
    """A model's sampling parameters where a request names none."""

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.0


class Sampler:
    """How one candidate draws its tokens. Owned by the engine thread; `is_plain`: it neither penalises nor biases."""

    def __init__(self, sampling: Sampling, recommended: Recommended, *, seed: int, prompt_tail: list[int]) -> None:
        self.temperature = _or(sampling.temperature, recommended.temperature)
        self.top_k = _or(sampling.top_k, recommended.top_k)
        self.kept_nats = KEPT_NATS * max(1.0, self.temperature)
        self._bias = np.array([*sampling.logit_bias.keys()], np.int32), np.array([*sampling.logit_bias.values()], np.float32)
        self._sampling = sampling
        self._counts: Counter[int] = Counter()
        self._recent: deque[int] = deque(prompt_tail, maxlen=REPETITION_WINDOW)
        self._chain = (
            None
            if self.temperature <= 0
            else Chain(
                seed=seed,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=_or(sampling.top_p, recommended.top_p),
                min_p=_or(sampling.min_p, recommended.min_p),
            )
        )
        self.is_plain = not (sampling.logit_bias or self._penalises)

    @property
    def _penalises(self) -> bool:
        s = self._sampling
        return bool(s.frequency_penalty or s.presence_penalty or s.repetition_penalty != 1.0)

    def adjust(self, row: Rows) -> None:
        """Penalties and bias on the few ids they touch, in place; row: (vocabulary,)."""
        if self.is_plain:
            return
        ids, values = self._bias
        row[ids] += values
        if not self._penalises:
            return
        s = self._sampling
        if s.repetition_penalty != 1.0 and self._recent:
            recent = np.fromiter(set(self._recent), np.int32)
            row[recent] = np.where(row[recent] > 0, row[recent] / s.repetition_penalty, row[recent] * s.repetition_penalty)
        if self._counts:
            seen = np.fromiter(self._counts.keys(), np.int32)
            row[seen] -= s.frequency_penalty * np.fromiter(self._counts.values(), np.float32) + s.presence_penalty

    def accept(self, token: int) -> None:
        if not self.is_plain:
            self._counts[token] += 1
            self._recent.append(token)

    @property
    def num_wanted(self) -> int:
        """How many of the best tokens decide the draw: 1 for greedy, top-k, or 0 for all."""
        return 1 if self._chain is None else self.top_k

    def choose(self, scratch: Candidates, kept: Kept, row: int) -> Choice:
        """Draw among the kept tokens of a row; the scratch holds those of all rows."""
        best, (first, last) = kept.best[row], kept.edges[row : row + 2]
        if first == last or best == -math.inf:  # not one logit of the row is a number, or nothing is allowed
            return NOTHING_ALLOWED
        if self._chain is None:
            token, logit = int(kept.ids[first + int(kept.logits[first:last].argmax())]), best
        else:
            token, logit = scratch.draw(self._chain, first, last)
            logit *= self.temperature
        return Choice(token, logit - kept.log_totals[row] if kept.log_totals else 0.0)

    def close(self) -> None:
        if self._chain is not None:
            self._chain.close()


class Want(NamedTuple):
    """What one draw asks of its logits; `matcher` only where the grammar binds this token; `logprob`: its Choice's."""

    sampler: Sampler
    matcher: Matcher | None
    top_logprobs: int | None
    logprob: bool

    @property
    def is_plain(self) -> bool:
        """It draws from the logits as they are."""
        return self.sampler.is_plain and self.matcher is None and self.top_logprobs is None


def sample(
    logits: Rows, wants: list[Want], scratch: Candidates, rows: Seq[int] | None = None
) -> list[tuple[Choice, ExactLogprobs | None]]:
    """One token for each want.

    Args:
        logits: (rows, vocabulary), modified in place.
        wants: in the order of their rows.
        scratch: where they draw.
        rows: whose logits each draws from; None: the wants have one row each.
    """
    if rows is None:
        rows = range(len(wants))
    elif len(wants) > len(logits) and not all(want.is_plain for want in wants):
        logits, rows = logits[rows], range(len(wants))
    exact = [
        _exact(logits[row], want.top_logprobs) if want.top_logprobs is not None else None
        for row, want in zip(rows, wants, strict=True)
    ]
    for row, want in zip(rows, wants, strict=True):
        want.sampler.adjust(logits[row])
        if want.matcher is not None:
            want.matcher.mask(logits[row])
    kept = _keep(logits, wants, rows)
    scratch.fill(kept.ids, kept.logits)
    choices = [want.sampler.choose(scratch, kept, at) for at, want in enumerate(wants)]
    return list(zip(choices, exact, strict=True))


def _keep(logits: Rows, wants: list[Want], rows: Seq[int]) -> Kept:
    """For each want, what it can draw of its row: within its nats of the maximum, and no worse than the last of its top-k.

    At least one token each. What is left in `logits` is of no use.
    """
    nats, wanted = [0.0] * len(logits), [1] * len(logits)
    for row, (sampler, *_) in zip(rows, wants, strict=True):
        nats[row] = max(nats[row], sampler.kept_nats)
        wanted[row] = max(wanted[row], sampler.num_wanted) if wanted[row] and sampler.num_wanted else 0
    summed = any(want.logprob for want in wants)
    keep = _keep_directly if logits.shape[1] < GROUPED_FROM else _keep_by_groups
    with np.errstate(invalid="ignore", divide="ignore"):  # a row where nothing is allowed
        kept = keep(logits, np.array(nats, np.float32), wanted, summed=summed)
    return kept if len(rows) == len(logits) else kept.of(rows)


def _keep_directly(logits: Rows, nats: Rows, wanted: list[int], *, summed: bool) -> Kept:
    best = logits.max(axis=1)
    floor = best - nats
    found = np.flatnonzero(logits >= floor[:, None])
    is_few = len(found) <= FEW_KEPT * len(best)
    if not is_few:
        floor = np.maximum(floor, _ranked(logits, wanted))
        found = np.flatnonzero(logits >= floor[:, None])
    rows, ids = np.divmod(found, logits.shape[1])
    kept = logits.ravel()[found]
    return _kept(rows, ids, kept, best, _log_totals(logits, rows, kept, best, is_few=is_few) if summed else None)


def _keep_by_groups(logits: Rows, nats: Rows, wanted: list[int], *, summed: bool) -> Kept:
    """The k-th best of all groups' best tokens is no better than the k-th best token: whatever is worse cannot be drawn."""
    num_rows, vocab_size = logits.shape
    stride = vocab_size // GROUP_DEPTH
    body, tail = logits[:, : stride * GROUP_DEPTH].reshape(num_rows, GROUP_DEPTH, stride), logits[:, stride * GROUP_DEPTH :]
    peaks = body.max(axis=1)  # (rows, stride): best of tokens g, g + stride, g + 2 stride ...
    best = peaks.max(axis=1)
    if tail.size:
        best = np.maximum(best, tail.max(axis=1))
    floor = np.maximum(best - nats, _ranked(_coarse(peaks, wanted), wanted))
    near = np.flatnonzero(peaks >= floor[:, None])
    rows, groups = np.divmod(near, stride)
    values = body[rows, :, groups]  # (groups near the best, GROUP_DEPTH)
    hits, depth = np.divmod(np.flatnonzero(values >= floor[rows][:, None]), GROUP_DEPTH)
    found = (rows * vocab_size + groups)[hits] + depth * stride
    if tail.size:
        tail_rows, tail_ids = np.divmod(np.flatnonzero(tail >= floor[:, None]), tail.shape[1])
        found = np.concatenate([found, tail_rows * vocab_size + tail_ids + stride * GROUP_DEPTH])
    found.sort()
    rows, ids = np.divmod(found, vocab_size)
    kept = logits.ravel()[found]
    return _kept(rows, ids, kept, best, _estimated_totals(rows, kept, body, peaks, floor, best) if summed else None)


def _coarse(peaks: Rows, wanted: list[int]) -> Rows:
    """Fewer groups' best, if these are many times as many as are wanted: ranked faster, a few tokens more are kept."""
    num_rows, num_groups = peaks.shape
    if num_groups < 4 * COARSE_GROUPS * max(wanted):
        return peaks
    stride = num_groups // COARSE_GROUPS
    return np.asarray(peaks[:, : stride * COARSE_GROUPS].reshape(num_rows, COARSE_GROUPS, stride).max(axis=1))


def _ranked(values: Rows, wanted: list[int]) -> Rows:
    """The k-th best value of each row, (rows,); -inf where k is 0 or more than there are."""
    width = values.shape[1]
    if wanted.count(k := wanted[0]) == len(wanted) and 0 < k <= width:  # nearly always
        return np.asarray(np.partition(values, width - k, axis=1)[:, width - k])
    ranks = sorted({-k for k in wanted if 0 < k <= width})
    ranked = np.partition(values, ranks, axis=1) if ranks else values
    return np.array([ranked[row, -k] if 0 < k <= width else -np.inf for row, k in enumerate(wanted)], np.float32)


def _log_totals(logits: Rows, rows: Tokens, kept: Rows, best: Rows, *, is_few: bool) -> Rows:
    """Log-sum-exp, (rows,), of what is kept of each row where that is all that counts, else of whole rows, which are used up."""
    if is_few:
        return np.asarray(best + np.log(np.bincount(rows, np.exp(kept - best[rows]), len(best))))
    np.subtract(logits, best[:, None], out=logits)
    np.exp(logits, out=logits)
    return np.asarray(best + np.log(logits.sum(axis=1)))


def _estimated_totals(rows: Tokens, kept: Rows, body: Rows, peaks: Rows, floor: Rows, best: Rows) -> Rows:
    """Log-sum-exp of rows, (rows,): what is kept and the other groups' best tokens in full, the rest as in some of the groups."""
    num_groups = peaks.shape[1] // SUMMED_GROUPS
    of_kept = np.bincount(rows, np.exp(kept - best[rows]), len(best))
    of_peaks = _below(peaks, floor, best)
    of_some = _below(body[:, :, :num_groups].reshape(len(best), -1), floor, best)  # copied: three times as fast as in place
    rest = of_some.sum(axis=1) - of_peaks[:, :num_groups].sum(axis=1)
    return np.asarray(best + np.log(of_kept + of_peaks.sum(axis=1) + rest * (peaks.shape[1] / num_groups)))


def _below(values: Rows, floor: Rows, best: Rows) -> Rows:
    """Weights of the values below each row's floor, 0 for the others."""
    weights = values - best[:, None]
    np.exp(weights, out=weights)
    weights *= values < floor[:, None]
    return weights


def _kept(rows: Tokens, ids: Tokens, logits: Rows, best: Rows, log_totals: Rows | None) -> Kept:
    edges = np.searchsorted(rows, np.arange(len(best) + 1))
    return Kept(ids, logits, edges.tolist(), best.tolist(), [] if log_totals is None else log_totals.tolist())


def _log_total(row: Rows) -> float:
    best = float(row.max())
    return best + math.log(float(np.exp(row - best).sum()))


def _exact(row: Rows, num_top: int) -> ExactLogprobs:
    top = np.argpartition(row, -num_top)[-num_top:] if num_top else np.empty(0, np.int64)
    top = top[np.argsort(-row[top], kind="stable")]
    return ExactLogprobs(row.copy(), _log_total(row), top)


T = TypeVar("T", int, float)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
