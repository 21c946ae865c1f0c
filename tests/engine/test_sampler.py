"""The pre-filter and the few-candidate chain against the whole vocabulary."""

from __future__ import annotations

import math

import numpy as np
import pytest

from atlas.engine.chain import Candidates, Chain
from atlas.engine.sampler import GROUPED_FROM, NOTHING_ALLOWED, Choice, Recommended, Sampler, Want, sample
from atlas.types import Sampling

VOCAB = 151_936
SMALL = 2_048


def logits(rows: int, *, spread: float = 2.5, peaks: int = 200, vocab: int = VOCAB, seed: int = 0) -> np.ndarray:
    """Rows shaped like a language model's: a broad floor and an exponential tail of likely tokens."""
    rng = np.random.default_rng(seed)
    out = (rng.standard_normal((rows, vocab)) * spread).astype(np.float32)
    for row in out:
        top = rng.choice(vocab, peaks, replace=False)
        row[top] += np.sort(rng.exponential(3.0, peaks))[::-1] + 8
    return out


def sampler(**given: float) -> Sampler:
    seed = int(given.pop("seed", 1))
    return Sampler(Sampling(**given), Recommended(), seed=seed, prompt_tail=[])  # type: ignore[arg-type]


def draw(rows: np.ndarray, samplers: list[Sampler], *, top: int | None = None) -> list[Choice]:
    wants = [Want(each, None, top, True) for each in samplers]
    return [choice for choice, _ in sample(rows.copy(), wants, Candidates())]


@pytest.mark.parametrize("vocab", [SMALL, VOCAB, VOCAB + 17])
@pytest.mark.parametrize(("temperature", "top_k"), [(0.6, 20), (1.0, 40), (2.0, 100)])
def test_a_seed_gives_the_token_of_the_full_chain(vocab: int, temperature: float, top_k: int) -> None:
    """30 draws each: the candidates differ only in tokens that top-k would drop."""
    rows = logits(30, vocab=vocab)
    fast = [
        draw(rows[i : i + 1], [sampler(temperature=temperature, top_k=top_k, top_p=0.95, seed=i)])[0].token for i in range(30)
    ]
    everything, scratch = np.arange(vocab, dtype=np.int32), Candidates()
    full = []
    for i in range(30):
        scratch.fill(everything, rows[i])
        chain = Chain(seed=i, temperature=temperature, top_k=top_k, top_p=0.95, min_p=0.0)
        full.append(scratch.draw(chain, 0, vocab)[0])
    assert fast == full


@pytest.mark.parametrize("spread", [0.1, 2.5])
@pytest.mark.parametrize("vocab", [SMALL, VOCAB, VOCAB + 17])
def test_greedy_is_argmax_and_its_logprob_is_within_what_is_promised(vocab: int, spread: float) -> None:
    rows = logits(5, spread=spread, peaks=3, vocab=vocab)
    for row, choice in zip(rows, draw(rows, [sampler(temperature=0.0)] * 5), strict=True):
        assert choice.token == row.argmax()
        wide = row.astype(np.float64)
        exact = wide.max() - (wide.max() + math.log(np.exp(wide - wide.max()).sum()))
        too_low = 0.1 if vocab > GROUPED_FROM else 1e-4
        assert exact - too_low <= choice.logprob <= exact + vocab * math.exp(-14) + 1e-4


FLAT = {
    "even": np.zeros(VOCAB),
    "normal": 3 * np.random.default_rng(1).standard_normal(VOCAB),
    "by frequency": -np.log(1 + np.arange(VOCAB)),
    "ties": np.random.default_rng(1).permutation(np.repeat([5.0, 0.0], [3000, VOCAB - 3000])),
}


@pytest.mark.parametrize("flat", FLAT)
def test_a_flat_rows_logprob_is_within_a_tenth(flat: str) -> None:
    row = FLAT[flat].astype(np.float32)
    choice = draw(row[None], [sampler(top_k=40, temperature=1.0)])[0]
    assert choice.logprob == pytest.approx(row[choice.token] - math.log(np.exp(FLAT[flat]).sum()), abs=0.1)


def test_rows_do_not_influence_each_other() -> None:
    rows = logits(4)
    alone = [draw(rows[i : i + 1], [sampler(seed=i)])[0] for i in range(4)]
    assert draw(rows, [sampler(seed=i) for i in range(4)]) == alone


def test_flat_rows_without_top_k_keep_every_token() -> None:
    """A uniform distribution must stay one: 4,000 draws over 2,048 tokens hit more than 1,500 different ones (expected 1,758)."""
    row, scratch = np.zeros((1, SMALL), np.float32), Candidates()
    each = sampler(temperature=1.0, top_k=0, top_p=1.0)
    tokens = {sample(row.copy(), [Want(each, None, None, False)], scratch)[0][0].token for _ in range(4000)}
    assert len(tokens) > 1500


def test_draws_follow_the_distribution() -> None:
    """20,000 draws over three tokens; the bound is 5 standard deviations: by chance it fails less than once in a million runs."""
    row = np.full((1, SMALL), -np.inf, np.float32)
    row[0, [5, 6, 7]] = np.log([0.5, 0.3, 0.2])
    each, scratch = sampler(temperature=1.0, top_k=0, top_p=1.0), Candidates()
    tokens = [sample(row.copy(), [Want(each, None, None, False)], scratch)[0][0].token for _ in range(20_000)]
    for token, share in ((5, 0.5), (6, 0.3), (7, 0.2)):
        assert tokens.count(token) / 20_000 == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / 20_000))


def test_bias_and_penalties_touch_only_their_tokens() -> None:
    row = np.zeros((1, SMALL), np.float32)
    row[0, [10, 11]] = 5.0, 4.5
    assert (
        draw(row, [Sampler(Sampling(temperature=0, logit_bias={10: -100.0}), Recommended(), seed=1, prompt_tail=[])])[0].token
        == 11
    )
    penalised = sampler(temperature=0.0, frequency_penalty=1.0)
    penalised.accept(10)
    assert draw(row, [penalised])[0].token == 11
    repeated = Sampler(Sampling(temperature=0, repetition_penalty=1.5), Recommended(), seed=1, prompt_tail=[10])
    assert draw(row, [repeated])[0].token == 11


def test_a_row_without_allowed_tokens_ends_the_answer() -> None:
    row = np.full((1, SMALL), -np.inf, np.float32)
    assert draw(row, [sampler(temperature=0.0)]) == [NOTHING_ALLOWED]


@pytest.mark.parametrize("vocab", [SMALL, VOCAB])
@pytest.mark.parametrize("broken", [(0,), (2,), (0, 1, 2)])
def test_a_row_of_no_numbers_ends_its_answer_and_no_other(vocab: int, broken: tuple[int, ...]) -> None:
    rows = logits(3, vocab=vocab)
    whole = draw(rows, [sampler(seed=i) for i in range(3)])
    rows[list(broken)] = np.nan
    drawn = draw(rows, [sampler(seed=i) for i in range(3)])
    assert drawn == [NOTHING_ALLOWED if i in broken else whole[i] for i in range(3)]


@pytest.mark.parametrize("vocab", [SMALL, VOCAB])
def test_exact_logprobs_are_those_of_the_whole_row(vocab: int) -> None:
    rows = logits(2, vocab=vocab)
    wants = [Want(sampler(temperature=0.0), None, 5, False), Want(sampler(temperature=0.0), None, None, False)]
    (choice, exact), (_, none) = sample(rows.copy(), wants, Candidates())
    assert none is None
    assert exact is not None
    probabilities = np.exp(rows[0].astype(np.float64) - rows[0].max())
    probabilities /= probabilities.sum()
    assert exact.of(choice.token) == pytest.approx(math.log(probabilities[choice.token]), abs=1e-4)
    assert exact.top.tolist() == np.argsort(-rows[0], kind="stable")[:5].tolist()
