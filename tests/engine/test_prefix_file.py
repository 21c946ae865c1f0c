"""Prefixes over a restart: found again with the same logits, and never where they do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from atlas.engine.host_cache import Entry
from atlas.engine.prefix_file import MAGIC, PrefixFile
from atlas.types import Prompt, Sampling
from tests import ggufs
from tests.engine.test_llama import GREEDY, generate, running

LONG = "The quick brown fox jumps over the lazy dog. " * 8


def ask(text: str) -> Prompt:
    return Prompt(text=text, max_tokens=8, sampling=GREEDY, top_logprobs=5)


def written(folder: Path) -> Path:
    [path] = folder.iterdir()
    return path


def entry(*tokens: int, size: int = 1000) -> Entry:
    return Entry(np.array(tokens, np.int32), np.arange(size).astype(np.uint8), 0)


async def test_a_prompt_that_was_answered_before_the_restart_need_not_be_computed_again(tmp_path: Path) -> None:
    model = ggufs.tiny_random()
    async with running(model) as engine:
        [fresh] = await generate(engine, ask(f"{LONG} again"))
    async with running(model, prefix_folder=str(tmp_path / "prefixes")) as engine:
        await generate(engine, ask(f"{LONG} once"))
    async with running(model, prefix_folder=str(tmp_path / "prefixes")) as engine:
        group = await engine.submit(ask(f"{LONG} again"))
        [again] = await group.all()
        assert group.cached_tokens >= len(LONG)
    assert again.tokens == fresh.tokens
    assert [one.logprob for one in again.logprobs] == pytest.approx([one.logprob for one in fresh.logprobs], abs=2e-3)
    path = written(tmp_path / "prefixes")
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize("change", ["another model", "another attention"])
async def test_cells_that_were_computed_otherwise_are_left_alone(tmp_path: Path, change: str) -> None:
    async with running(ggufs.tiny_random(), prefix_folder=str(tmp_path)) as engine:
        await generate(engine, ask(LONG))
    model = ggufs.tiny_calm() if change == "another model" else ggufs.tiny_random()
    attention = "on" if change == "another attention" else "auto"
    async with running(model, prefix_folder=str(tmp_path), flash_attention=attention) as engine:
        group = await engine.submit(ask(LONG))
        await group.all()
        assert group.cached_tokens == 0


async def test_nothing_is_remembered_of_what_has_not_been_finished(tmp_path: Path) -> None:
    async with running(ggufs.tiny_random(), prefix_folder=str(tmp_path)) as engine:
        group = await engine.submit(Prompt(text=LONG, max_tokens=3000, sampling=(Sampling(temperature=1.0),)))
        await group.reached(3)
    assert written(tmp_path).read_bytes() == MAGIC


async def test_a_model_whose_file_has_gone_is_closed_all_the_same(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    shutil.copy(ggufs.tiny_random(), model)
    async with running(model, prefix_folder=str(tmp_path / "prefixes")) as engine:
        await generate(engine, ask(LONG))
        model.unlink()
    shutil.copy(ggufs.tiny_random(), model)
    async with running(model, prefix_folder=str(tmp_path / "prefixes")) as engine:
        group = await engine.submit(ask(LONG))
        await group.all()
        assert group.cached_tokens == len(LONG) - 1


def test_entries_come_back_as_they_went_in_the_same_order(tmp_path: Path) -> None:
    file = PrefixFile(tmp_path / "deep" / "folder", ggufs.tiny_random(), attention="")
    assert file.read() == []
    file.write([entry(1, 2, 3), entry(4, size=0)])
    first, second = file.read()
    assert (first.ids.tolist(), second.ids.tolist(), second.state.tolist()) == ([1, 2, 3], [4], [])
    assert np.array_equal(first.state, entry(1).state)
    file.write([])
    assert file.read() == []


@pytest.mark.parametrize("cut", [1, len(MAGIC) - 1, len(MAGIC) + 3, len(MAGIC) + 20, -1, -1500])
def test_of_a_cut_file_what_is_whole_is_read(tmp_path: Path, cut: int) -> None:
    file = PrefixFile(tmp_path, ggufs.tiny_random(), attention="")
    file.write([entry(1, 2, 3), entry(4)])
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    assert [one.ids.tolist() for one in file.read()] == ([[1, 2, 3]] if cut == -1 else [])


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    file = PrefixFile(tmp_path, ggufs.tiny_random(), attention="")
    file.write([entry(1)])
    path = written(tmp_path)
    whole = path.read_bytes()
    for at in (*range(len(whole) - 1000), len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        assert file.read() == [], at


def test_a_disk_that_refuses_leaves_what_was_there(tmp_path: Path) -> None:
    file = PrefixFile(tmp_path, ggufs.tiny_random(), attention="")
    file.write([entry(1)])
    (written(tmp_path).with_suffix(".partial")).mkdir()
    file.write([entry(2)])
    assert [one.ids.tolist() for one in file.read()] == [[1]]
