"""From logits to tokens, for all draws of a step at once.

A step's logits are (rows, vocabulary) float32: 12 MB for 20 rows of Qwen3. Full C chains over them cost 10.9 ms a step, so a few
whole-batch numpy calls first keep the tokens within 14 nats of each row's best (what is dropped has less than e**-14 of the best
token's probability each) that top-k may choose, and the C chain, or argmax, sees only those. Few large calls also mean few GIL
hand-overs.

Order, as llama.cpp: penalties and bias, grammar, top-k, top-p, min-p, temperature, draw.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence as Seq
from itertools import accumulate
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from atlas.engine.chain import Candidates, Chain
from atlas.engine.grammar import Matcher
from atlas.engine.runner import Rows, Tokens
from atlas.types import Sampling

KEPT_NATS = 14.0  # times the temperature, where that is above 1; measured: same tokens as the full chain with top-k up to 100
REPETITION_WINDOW = 64  # tokens; llama.cpp's default penalty_last_n
GROUPED_FROM = 16384  # vocabulary size from which group maxima pay; chosen between 4,096 and 151,936, at which both were measured
BROAD_GROUPS = 256  # more groups than this within reach of the best: a flat distribution; chosen, unmeasured
SUMMED_GROUPS = 16  # a flat row's sum is taken over one of so many groups; the whole sum took three quarters of a step's sampling
FEW_KEPT = 64  # tokens a row that a chain may sort: its own top-k takes less than finding the k-th best beforehand; chosen
GROUP_DEPTH = 64  # tokens per group, strided so that the maximum runs along contiguous memory


class Choice(NamedTuple):
    """A drawn token and its log-probability after penalties, before temperature.

    The sum runs over kept tokens only where these are few, which makes it too high by at most vocabulary * e**-14 (0.13 nats for
    Qwen3; usually far less). Where they are many, it is estimated over large vocabularies (measured: within 0.1 nats).
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
        log_totals: log-sum-exp of each row.
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
            [self.log_totals[row] for row in rows],
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
        return Choice(token, logit - kept.log_totals[row])

    def close(self) -> None:
        if self._chain is not None:
            self._chain.close()


class Want(NamedTuple):
    """What one draw asks of its logits; `matcher` only where the grammar binds this token."""

    sampler: Sampler
    matcher: Matcher | None
    top_logprobs: int | None

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
    kept = _keep(logits, [want.sampler for want in wants], rows)
    scratch.fill(kept.ids, kept.logits)
    choices = [want.sampler.choose(scratch, kept, at) for at, want in enumerate(wants)]
    return list(zip(choices, exact, strict=True))


def _keep(logits: Rows, samplers: list[Sampler], rows: Seq[int]) -> Kept:
    """For each sampler, what it can draw of its row: within its nats of the maximum, and no worse than the last of its top-k.

    At least one token each. What is left in `logits` is of no use.
    """
    nats, wanted = [0.0] * len(logits), [1] * len(logits)
    for row, sampler in zip(rows, samplers, strict=True):
        nats[row] = max(nats[row], sampler.kept_nats)
        wanted[row] = max(wanted[row], sampler.num_wanted) if wanted[row] and sampler.num_wanted else 0
    keep = _keep_directly if logits.shape[1] < GROUPED_FROM else _keep_by_groups
    with np.errstate(invalid="ignore", divide="ignore"):  # a row where nothing is allowed
        kept = keep(logits, np.array(nats, np.float32), wanted)
    return kept if len(rows) == len(logits) else kept.of(rows)


def _keep_directly(logits: Rows, nats: Rows, wanted: list[int]) -> Kept:
    best = logits.max(axis=1)
    floor = best - nats
    found = np.flatnonzero(logits >= floor[:, None])
    is_few = len(found) <= FEW_KEPT * len(best)
    if not is_few:
        floor = np.maximum(floor, _ranked(logits, wanted))
        found = np.flatnonzero(logits >= floor[:, None])
    rows, ids = np.divmod(found, logits.shape[1])
    kept = logits.ravel()[found]
    return _kept(rows, ids, kept, best, _log_totals_of(rows, kept, best) if is_few else _log_totals(logits, best))


def _keep_by_groups(logits: Rows, nats: Rows, wanted: list[int]) -> Kept:
    num_rows, vocab_size = logits.shape
    stride = vocab_size // GROUP_DEPTH
    body, tail = logits[:, : stride * GROUP_DEPTH].reshape(num_rows, GROUP_DEPTH, stride), logits[:, stride * GROUP_DEPTH :]
    peaks = body.max(axis=1)  # (rows, stride): best of tokens g, g + stride, g + 2 stride ...
    best = peaks.max(axis=1)
    if tail.size:
        best = np.maximum(best, tail.max(axis=1))
    floor = best - nats
    is_near = peaks >= floor[:, None]
    if broad := _broad(is_near, wanted):
        floor[broad] = np.maximum(floor[broad], _ranked(peaks[broad], [wanted[row] for row in broad]))
        is_near = peaks >= floor[:, None]
    rows, groups = _where(is_near)
    values = body[rows, :, groups]  # (hits, GROUP_DEPTH)
    hits, depth = _where(values >= floor[rows][:, None])
    rows, ids, kept = rows[hits], depth * stride + groups[hits], values[hits, depth]
    if tail.size:
        tail_rows, tail_ids = _where(tail >= floor[:, None])
        rows, ids = np.concatenate([rows, tail_rows]), np.concatenate([ids, tail_ids + stride * GROUP_DEPTH])
        kept = np.concatenate([kept, tail[tail_rows, tail_ids]])
    order = np.argsort(rows * vocab_size + ids)
    rows, ids, kept = rows[order], ids[order], kept[order]
    log_totals = _log_totals_of(rows, kept, best)
    if broad:  # what is kept no longer carries nearly all of the sum
        log_totals[broad] = _estimated_totals(body[:, :, : stride // SUMMED_GROUPS][broad], peaks[broad], best[broad])
    return _kept(rows, ids, kept, best, log_totals)


def _where(mask: NDArray[np.bool_]) -> tuple[Tokens, Tokens]:
    """`np.nonzero` of two dimensions, three times as fast where little is true."""
    return np.divmod(np.flatnonzero(mask), mask.shape[1])


def _broad(is_near: NDArray[np.bool_], wanted: list[int]) -> list[int]:
    """Rows of which thousands of tokens would be kept, though few of them can be drawn; is_near: (rows, groups)."""
    return [row for row, near in enumerate(is_near) if 0 < wanted[row] <= BROAD_GROUPS and np.count_nonzero(near) > BROAD_GROUPS]


def _ranked(values: Rows, wanted: list[int]) -> Rows:
    """The k-th best value of each row, (rows,); -inf where k is 0 or more than there are."""
    width = values.shape[1]
    ranks = sorted({-k for k in wanted if 0 < k <= width})
    ranked = np.partition(values, ranks, axis=1) if ranks else values
    return np.array([ranked[row, -k] if 0 < k <= width else -np.inf for row, k in enumerate(wanted)], np.float32)


def _log_totals(logits: Rows, best: Rows) -> Rows:
    """Log-sum-exp of whole rows, (rows,); the logits are used up: copies of 12 MB would cost as much as the sums."""
    np.subtract(logits, best[:, None], out=logits)
    np.exp(logits, out=logits)
    return np.asarray(best + np.log(logits.sum(axis=1)))


def _log_totals_of(rows: Tokens, kept: Rows, best: Rows) -> Rows:
    """Log-sum-exp of what is kept of each row, (rows,), where that is all that counts; rows: which each kept logit is of."""
    return np.asarray(best + np.log(np.bincount(rows, np.exp(kept - best[rows]), len(best))))


def _estimated_totals(groups: Rows, peaks: Rows, best: Rows) -> Rows:
    """Log-sum-exp of flat rows, (rows,), from the peaks of all groups and from some whole groups, (rows, depth, groups)."""
    of_peaks = np.exp(peaks - best[:, None])
    num_groups = groups.shape[2]
    weights = groups - best[:, None, None]
    below = np.exp(weights, out=weights).sum(axis=(1, 2)) - of_peaks[:, :num_groups].sum(axis=1)
    return np.asarray(best + np.log(of_peaks.sum(axis=1) + below * (peaks.shape[1] / num_groups)))


def _kept(rows: Tokens, ids: Tokens, logits: Rows, best: Rows, log_totals: Rows) -> Kept:
    edges = np.searchsorted(rows, np.arange(len(best) + 1))
    return Kept(ids, logits, edges.tolist(), best.tolist(), log_totals.tolist())


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
