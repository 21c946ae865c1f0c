from __future__ import annotations

import itertools
from typing import NamedTuple

from atlas.engine.turns import TURN_S, Turns


class Candidate(NamedTuple):
    key: int
    is_spent: bool = False


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def steps(turns: Turns, clock: Clock, running: list[Candidate], *, num_steps: int, step_s: float) -> list[int]:
    """Whose steps they were."""
    taken = []
    for _ in range(num_steps):
        key = turns.order(running)[0]
        turns.took(key)
        taken.append(key)
        clock.now_s += step_s
    return taken


def started(*keys: int) -> tuple[Turns, Clock]:
    clock = Clock()
    turns = Turns(clock)
    for key in keys:
        turns.expect(key)
    return turns, clock


def test_all_that_have_something_to_run_get_as_many_short_steps() -> None:
    turns, clock = started(1, 2, 3)
    running = [Candidate(0), Candidate(1), Candidate(1), Candidate(2), Candidate(3)]
    taken = steps(turns, clock, running, num_steps=400, step_s=TURN_S / 4.5)
    assert {key: taken.count(key) for key in range(4)} == dict.fromkeys(range(4), 100)
    switches = sum(before != after for before, after in itertools.pairwise(taken))
    assert switches == 400 / 5 - 1, "a switch costs about a step, so it is made for five"


def test_a_step_longer_than_a_turn_is_a_turn() -> None:
    turns, clock = started(1)
    taken = steps(turns, clock, [Candidate(0), Candidate(1)], num_steps=6, step_s=TURN_S * 3)
    assert taken == [1, 0, 1, 0, 1, 0]


def test_whoever_comes_after_a_long_time_alone_does_not_wait_for_a_turn() -> None:
    turns, clock = started(1)
    assert set(steps(turns, clock, [Candidate(0)], num_steps=50, step_s=0.01)) == {0}
    assert turns.order([Candidate(0), Candidate(1)]) == [1, 0]


def test_parked_candidates_take_no_turn() -> None:
    turns, _ = started(1)
    assert turns.order([Candidate(1, is_spent=True), Candidate(0)]) == [0]
    assert turns.order([Candidate(1, is_spent=True)]) == [0]


def test_whoever_had_no_room_is_tried_again_before_those_that_had_steps() -> None:
    turns, clock = started(1, 2)
    running = [Candidate(0), Candidate(1), Candidate(2)]
    for _ in range(20):
        turns.took(next(key for key in turns.order(running) if key != 2))
        clock.now_s += TURN_S
    assert turns.order(running)[0] == 2


def test_without_adapters_nothing_is_asked_of_the_candidates() -> None:
    turns, _ = started()
    assert turns.order([]) == [0]
    turns.expect(1)
    turns.forget(1)
    turns.took(0)
    assert turns.order([Candidate(7)]) == [0]
