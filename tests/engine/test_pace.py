"""How much of a prompt a step computes beside running answers."""

from __future__ import annotations

import pytest

from atlas.engine import load_engine
from atlas.engine.gain import RowCosts
from atlas.engine.pace import LEAST_TOKENS, Pace
from atlas.settings import EngineSettings
from atlas.types import Prompt
from tests import ggufs


def pace(*, row_s: float = 0.0, token_s: float = 0.0, step_s: float = 0.2) -> Pace:
    """Of a machine that takes so long for a row of an answer, whatever is beside it, and for a token of a prompt."""
    costs = RowCosts(share=1.0)
    if row_s:
        for _ in range(20):
            costs.note(1, row_s)
    made = Pace(costs, most_tokens=256, step_s=step_s)
    if token_s:
        made.note(256, rows=1 if row_s else 0, seconds=row_s + 256 * token_s)
    return made


@pytest.mark.parametrize(
    ("row_s", "token_s", "expected"),
    [
        (0.0, 0.0, 256),  # nothing is known yet
        (0.03, 0.0005, 256),  # a GPU: all of it fits
        (0.05, 0.002, 75),  # what the target leaves
        (0.15, 0.002, 75),  # less is left than the answers take: as long as they
        (1.0, 0.01, 100),
        (0.5, 0.01, LEAST_TOKENS),
        (0.01, 0.1, LEAST_TOKENS),
    ],
)
def test_a_step_has_as_many_tokens_of_prompts_as_its_time_allows(row_s: float, token_s: float, expected: int) -> None:
    assert pace(row_s=row_s, token_s=token_s).tokens(1) == pytest.approx(expected, abs=2)


def test_what_a_token_costs_follows_the_machine() -> None:
    made = pace(token_s=0.0025)
    assert made.tokens(0) == 80
    for _ in range(30):
        made.note(64, rows=0, seconds=64 * 0.002)
    assert made.tokens(0) == pytest.approx(100, abs=1)
    made.note(16, rows=0, seconds=10.0)  # a few tokens say nothing
    assert made.tokens(0) == pytest.approx(100, abs=1)


def test_a_step_that_was_faster_than_its_rows_alone_teaches_no_nonsense() -> None:
    made = pace(row_s=0.1)
    made.note(64, rows=1, seconds=0.05)
    assert made.tokens(1) == 256


async def test_an_engine_that_misses_its_target_reads_a_long_prompt_in_small_parts() -> None:
    """For a target that no machine reaches, the least a step may have: once it is known what a token of a prompt takes."""
    settings = EngineSettings(threads=1, context_tokens=4096, embedder="model", prefill_step_ms=0.001)
    engine = await load_engine(ggufs.tiny_random(), model_id="tiny", settings=settings)
    try:
        await (await engine.submit(Prompt(text="x" * 300, max_tokens=1))).all()
        running = await engine.submit(Prompt(text="go", max_tokens=900))
        await running.reached(20)  # and what a row takes
        before = engine.stats().steps
        await (await engine.submit(Prompt(text="y" * 3000, max_tokens=1))).all()
        assert engine.stats().steps - before > 2 * 3000 // 256, "256 a step would be 12"
        running.cancel()
    finally:
        await engine.close()
