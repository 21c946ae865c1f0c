"""How many guesses are worth their rows, and what is learnt about both."""

from __future__ import annotations

import random

import numpy as np
import pytest

from atlas.engine.gain import LEAST_GAIN, ROWS_MAX, Offer, RowCosts, Share, best_lengths
from atlas.engine.ngram import longest_match


def free(_rows: int) -> float:
    return 1.0


def dear(rows: int) -> float:
    """Each row costs its share."""
    return float(rows)


def cpu(rows: int) -> float:
    return 1.0 + 0.4 * (rows - 1)


def lengths(*chances: float, seconds: object = free, rows: int = 1, room: int = 100, most: int = 16, **least: float) -> list[int]:
    offers = [Offer(most, chance, None) for chance in chances]
    return best_lengths(offers, rows=rows, room=room, seconds=seconds, **least)  # type: ignore[arg-type]


def test_where_rows_are_free_a_guess_is_as_long_as_it_may_be_and_where_each_costs_its_share_there_is_none() -> None:
    assert lengths(0.9) == [16]
    assert lengths(0.9, most=3) == [3]
    assert lengths(0.9, room=5) == [5]
    assert lengths(0.98, seconds=dear) == [0]
    assert lengths(0.0) == [0]


def test_the_length_is_the_one_with_most_tokens_per_second() -> None:
    for chance in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95):
        rates = [sum(chance**n for n in range(length + 1)) / cpu(1 + length) for length in range(17)]
        best = int(np.argmax(rates))
        assert lengths(chance, seconds=cpu) == [best if rates[best] > LEAST_GAIN else 0], chance


def test_of_several_answers_those_that_are_surer_get_more_rows() -> None:
    first, second, third = lengths(0.95, 0.8, 0.0, rows=3, room=8, seconds=lambda rows: 1 + 0.01 * rows)
    assert first > second > third == 0
    assert first + second == 8


def test_making_guesses_costs_too() -> None:
    offers = [Offer(16, 0.8, lambda length: 0.5 * length)]
    assert best_lengths(offers, rows=1, room=100, seconds=free) == [2], "1.22 tokens a second; one guess would bring 1.20"
    offers = [Offer(16, 0.8, lambda length: 0.9 * length)]
    assert best_lengths(offers, rows=1, room=100, seconds=free) == [0]
    assert best_lengths(offers, rows=1, room=100, seconds=free, least_gain=0.0) == [1], "when it is only to be tried"


def test_no_step_has_more_rows_than_outputs_are_planned_for() -> None:
    assert sum(lengths(*[0.97] * 7, rows=7)) == ROWS_MAX - 7


def test_costs_are_learnt_through_noise_and_stay_apart_from_the_machines_load() -> None:
    rng = random.Random(0)
    costs = RowCosts(0.5)
    for step in range(2000):
        load = 1.0 if step < 1000 else 3.0
        rows = rng.choice((1, 2, 5)) if step < 1000 else 5
        costs.note(rows, 0.01 * load * cpu(rows) * rng.uniform(0.9, 1.3) * (20 if rng.random() < 0.01 else 1))
    for rows in (1, 2, 3, 5):
        assert costs.seconds(rows) / costs.seconds(1) == pytest.approx(cpu(rows), rel=0.25), rows
    assert costs.seconds(5) == pytest.approx(0.03 * cpu(5) * 1.1, rel=0.25), "thrice as long since the load came"


def test_how_many_rows_are_tried_grows_with_what_has_been_seen() -> None:
    costs = RowCosts(0.05)
    known = [costs.is_known]
    reach = []
    for rows in (1, 4, 10):
        costs.note(rows, 0.01)
        known.append(costs.is_known)
        reach.append(costs.within_reach)
    assert known == [False, True, True, True]
    assert reach == [4, 10, 22]


def test_a_share_forgets() -> None:
    share = Share()
    for _ in range(50):
        share.note(4, 4, memory=12)
    assert share.given(0.5, weight=3) > 0.85
    for _ in range(4):
        share.note(0, 4, memory=12)
    assert share.given(0.5, weight=3) < 0.4


def match(text: str, own: str) -> tuple[int, str]:
    length, end = longest_match(np.frombuffer(text.encode(), np.uint8), np.frombuffer(own.encode(), np.uint8))
    return length, text[end:]


def test_the_longest_match_is_found_and_of_equal_ones_the_last() -> None:
    assert match("abcX abcdeY cdeZ", "..abcde") == (5, "Y cdeZ")
    assert match("cdeX cdeY", "cde") == (3, "Y")
    assert match("cde", "cde") == (0, "cde"), "nothing follows it"
    assert match("deX", "cde") == (2, "X")
    assert match("eX", "cde") == (0, "eX"), "one token is not enough"
    assert match("cdeX" + "zdeY" * 40, "cde")[0] == 3, "however many shorter ones come after it"
    assert match("cdeX", "zcde") == (3, "X"), "it begins in the middle of another text"
    assert match("", "cde")[0] == match("cdeX", "e")[0] == 0
    period = "xyz " * 30
    assert match(period, period) == (32, "xyz ")


def test_matches_are_those_of_a_plain_search() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        text, own = (rng.integers(0, 3, rng.integers(1, 60)).astype(np.int32) for _ in range(2))
        length, end = longest_match(text, own)
        found = [common(text[:at], own) for at in range(len(text))]
        least = min(3, max(found, default=0))
        tried = [(size, at) for at, size in enumerate(found) if size >= max(2, least)][-16:]
        assert (length, end) == max(tried, default=(0, 0))


def common(first: np.ndarray, second: np.ndarray) -> int:
    size = 0
    while size < min(len(first), len(second), 32) and first[-1 - size] == second[-1 - size]:
        size += 1
    return size
