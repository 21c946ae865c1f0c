"""Kept answers: their owner's, for their time, whole or not there."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from atlas.errors import LedgerUnavailable
from atlas.store import KeptResponse, KeptResponses
from tests.disks import read_only

ID = "resp_" + "0" * 24
ANSWER = KeptResponse(
    owner="u1",
    items=[{"role": "user", "content": "h\N{LATIN SMALL LETTER E WITH ACUTE}"}],
    reply=msgspec.Raw(b'{"id":"x"}'),
)


def kept_in(folder: Path, **changes: Any) -> KeptResponses:
    return KeptResponses(folder / "responses", **{"keep_s": 60.0, "limit_bytes": 10**6} | changes)


async def test_an_answer_is_found_by_its_owner_until_it_is_removed(tmp_path: Path) -> None:
    kept = kept_in(tmp_path)
    assert await kept.find(ID, owner="u1") is None
    assert await kept.keep(ID, ANSWER)
    assert await kept_in(tmp_path).find(ID, owner="u1") == ANSWER
    assert await kept.find(ID, owner="u2") is None
    assert not await kept.remove(ID, owner="u2")
    assert await kept.remove(ID, owner="u1")
    assert not await kept.remove(ID, owner="u1")
    assert list((tmp_path / "responses").iterdir()) == []


@pytest.mark.parametrize("name", ["", "resp_1", "../secrets/pepper", ID + "/x", ID.upper()])
async def test_only_what_looks_like_an_id_is_looked_for(tmp_path: Path, name: str) -> None:
    assert await kept_in(tmp_path).find(name, owner="u1") is None


async def test_an_answer_that_has_had_its_time_is_gone_before_and_after_the_house_is_kept(tmp_path: Path) -> None:
    await kept_in(tmp_path).keep(ID, ANSWER)
    later = kept_in(tmp_path, clock=lambda: time.time() + 61)
    assert await later.find(ID, owner="u1") is None
    assert kept_in(tmp_path).prune() == 0
    assert later.prune() == 1
    assert later.prune() == 0


async def test_of_too_many_the_oldest_go(tmp_path: Path) -> None:
    kept = kept_in(tmp_path)
    ids = [f"resp_{number:024x}" for number in range(5)]
    for number, name in enumerate(ids):
        await kept.keep(name, ANSWER)
        at = time.time() - 10 + number
        os.utime(tmp_path / "responses" / name, (at, at))
    size = (tmp_path / "responses" / ids[0]).stat().st_size
    assert kept_in(tmp_path, limit_bytes=2 * size).prune() == 3
    assert [await kept.find(name, owner="u1") is not None for name in ids] == [False, False, False, True, True]


async def test_a_damaged_file_is_an_answer_that_is_not_there(tmp_path: Path) -> None:
    kept = kept_in(tmp_path)
    await kept.keep(ID, ANSWER)
    (tmp_path / "responses" / ID).write_bytes(b"odd")
    assert await kept.find(ID, owner="u1") is None


async def test_a_disk_that_takes_nothing_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "responses").write_text("a file in the way")
    kept = kept_in(tmp_path)
    assert not await kept.keep(ID, ANSWER)
    assert await kept.find(ID, owner="u1") is None
    assert kept.prune() == 0


async def test_a_file_system_that_turns_read_only_lets_nothing_go_and_says_so(small_disk: Path) -> None:
    kept = kept_in(small_disk, limit_bytes=0)
    await kept.keep(ID, ANSWER)
    with read_only(small_disk):
        with pytest.raises(LedgerUnavailable, match="cannot be deleted"):
            await kept.remove(ID, owner="u1")
        assert kept.prune() == 0
        assert await kept.find(ID, owner="u1") == ANSWER
    assert kept.prune() == 1


async def test_nobody_else_on_the_machine_may_read_it(tmp_path: Path) -> None:
    await kept_in(tmp_path).keep(ID, ANSWER)
    modes = [(path.stat().st_mode & 0o777) for path in (tmp_path / "responses", tmp_path / "responses" / ID)]
    assert modes == [0o700, 0o600]
