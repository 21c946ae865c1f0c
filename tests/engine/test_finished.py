"""When finished prefixes leave the context, and how much of one a prompt takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from atlas.engine.finished import CARRIED_ROWS_IF_SAVED_CPU
from atlas.engine.runner import Runner, State
from atlas.types import Prompt, Sampling
from tests import ggufs
from tests.engine.test_llama import generate, running

GREEDY = (Sampling(temperature=0.0),)


def ask(text: str, *, max_tokens: int) -> Prompt:
    return Prompt(text=text, sampling=GREEDY, max_tokens=max_tokens)


@contextmanager
def saves() -> Iterator[list[int]]:
    """Bytes of whatever is copied out of a context meanwhile."""
    sizes: list[int] = []
    save = Runner.save

    def counted(self: Runner, seq_id: int) -> State:
        state = save(self, seq_id)
        sizes.append(state.nbytes)
        return state

    with patch.object(Runner, "save", counted):
        yield sizes


async def test_what_nobody_goes_on_from_leaves_before_it_has_cost_more_than_its_copy() -> None:
    async with running(ggufs.tiny_random()) as engine:
        await generate(engine, ask("a" * 200, max_tokens=4))
        few = CARRIED_ROWS_IF_SAVED_CPU // 2
        with saves() as copied:
            await generate(engine, ask("b" * (few - 2), max_tokens=3))
            assert engine.stats().cells_used > 200
            assert not copied
            await generate(engine, ask("c" * 100, max_tokens=3))  # its own rows would look over them
            assert engine.stats().cells_used < 110
            assert len(copied) == 2


async def test_a_prefix_stays_as_long_as_one_that_runs_holds_its_cells() -> None:
    async with running(ggufs.tiny_random()) as engine:
        await generate(engine, ask("a" * 200, max_tokens=4))
        with saves() as copied:
            await generate(engine, ask("a" * 200 + "b" * 20, max_tokens=CARRIED_ROWS_IF_SAVED_CPU * 4))
            assert not copied
            await generate(engine, ask("c" * 100, max_tokens=4))
            assert len(copied) == 2, "now they cost something, though each holds most of the other's cells"


@pytest.mark.parametrize(
    ("flash_attention", "length", "shared", "rows"),
    [
        *(("off", 64, 20, 44), ("off", 64, 3, 61)),
        *(("on", 64, 10, 64), ("on", 64, 20, 44), ("on", 74, 20, 64), ("on", 100, 20, 80), ("on", 60, 5, 55)),
    ],
)
async def test_no_prompt_is_a_few_rows_short_of_a_tile(flash_attention: str, length: int, shared: int, rows: int) -> None:
    """Fewer than 64 rows of a prompt take longer than 64 with llama.cpp's flash attention on a CPU."""
    assert await rows_read(ggufs.tiny_random(), length, shared, flash_attention=flash_attention) == rows


@pytest.mark.parametrize(
    ("length", "shared", "rows"), [(32, 3, 32), (33, 5, 32), (64, 3, 64), (40, 13, 27), (200, 90, 112), (30, 2, 28), (31, 4, 27)]
)
async def test_k_quants_are_read_in_sixteens(length: int, shared: int, rows: int) -> None:
    """12 to 15 rows more than a multiple of 16 take longer than the next with Q4_K_M."""
    assert await rows_read(ggufs.tiny_k_quants(), length, shared) == rows


async def rows_read(model: Path, length: int, shared: int, **settings: Any) -> int:
    """Of a prompt that shares the beginning of one before it; what it is answered is what it is answered alone."""
    first, second = "x" * shared + "y" * 50, "x" * shared + "z" * (length - shared)
    async with running(model, host_cache_tokens=0, **settings) as engine:
        await generate(engine, ask(first, max_tokens=2))
        before = engine.stats().cached_tokens
        (crowded,) = await generate(engine, ask(second, max_tokens=5))
        cached = engine.stats().cached_tokens - before
    async with running(model, **settings) as engine:
        (alone,) = await generate(engine, ask(second, max_tokens=5))
    assert crowded.tokens == alone.tokens
    return length - cached
