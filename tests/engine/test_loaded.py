"""Models loaded beside each other and instead of each other, with real files."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from atlas.engine import Engine, LoadedModels, ModelRegistry, load_engine
from atlas.engine.memory import HOST_RESERVE_BYTES, need_of
from atlas.engine.sizing import kv_bytes_per_cell
from atlas.errors import BadRequest, Conflict, ModelFileError, ModelNotFound
from atlas.launch import ModelChoice
from atlas.settings import EngineSettings, packaged
from tests import ggufs
from tests.engine.contract import greedy
from tests.engine.test_resident import is_mapped

SETTINGS = EngineSettings(threads=1, context_tokens=512, max_sequences=2, embedder="off")
PLENTY = 10**12
NANO = packaged("models/nano/nano-q8_0.gguf")  # of another vocabulary


async def make(choice: ModelChoice, settings: EngineSettings) -> Engine:
    return await load_engine(Path(choice.path), model_id=choice.id, settings=settings)


@asynccontextmanager
async def models(folder: Path, *, free_bytes: int = PLENTY) -> AsyncIterator[LoadedModels]:
    """`tiny` is loaded; `calm` and `nano` are on this machine, and a file that is no model any more."""
    registry = ModelRegistry(folder)
    for name, path in (("tiny", ggufs.tiny_random()), ("calm", ggufs.tiny_calm())):
        registry.add(path, name=name)
    broken = folder / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    registry.add(broken, name="broken")
    loaded = LoadedModels(SETTINGS, find=registry.find, make=make, free_bytes=lambda _settings: free_bytes)
    first = registry.find("tiny")
    loaded.begin(await make(first, SETTINGS), lambda: make(first, SETTINGS), Path(first.path))
    try:
        yield loaded
    finally:
        await loaded.close()


async def test_two_models_answer_side_by_side_and_the_first_is_the_default(tmp_path: Path) -> None:
    async with models(tmp_path) as loaded:
        loading = asyncio.create_task(loaded.load("calm"))
        await asyncio.sleep(0)  # it has begun
        assert loaded.states() == {"tiny": "ready", "calm": "loading"}
        with pytest.raises(Conflict, match="calm is being loaded; wait"):
            await loaded.load("nano")
        calm = await loading
        assert list(loaded.engines()) == ["tiny", "calm"]
        assert loaded.default is loaded.engines()["tiny"]
        groups = [await engine.submit(greedy(model=name)) for name, engine in loaded.engines().items()]
        tiny_says, calm_says = [(await group.all())[0] for group in groups]
        assert (tiny_says.model, calm_says.model) == ("tiny", "calm")
        assert await loaded.load("calm") is calm


async def test_one_takes_the_place_of_another_whose_answer_ends_first(tmp_path: Path) -> None:
    async with models(tmp_path) as loaded:
        group = await loaded.engines()["tiny"].submit(greedy(max_tokens=100))
        await loaded.load("calm", instead_of="tiny")
        assert list(loaded.engines()) == ["calm"]
        assert [generation.finish_reason for generation in await group.all()] == ["length"]


async def test_what_does_not_fit_is_refused_with_the_figures_before_anything_is_loaded(tmp_path: Path) -> None:
    async with models(tmp_path, free_bytes=1000) as loaded:
        with pytest.raises(Conflict, match=r"model 'calm' needs .* GB are free; unload another first"):
            await loaded.load("calm")
        assert loaded.states() == {"tiny": "ready"}
        assert "calm was not loaded" in loaded.failure


async def test_what_fits_in_the_place_of_another_is_loaded_there(tmp_path: Path) -> None:
    needed = need_of(ggufs.tiny_calm(), SETTINGS).total_bytes
    coming = need_of(ggufs.tiny_random(), SETTINGS)
    async with models(tmp_path, free_bytes=needed - coming.weights_bytes - coming.cells_bytes) as loaded:
        with pytest.raises(Conflict):
            await loaded.load("calm")
        await loaded.load("calm", instead_of="tiny")
        assert list(loaded.engines()) == ["calm"]


async def test_a_file_that_is_no_model_is_refused_and_what_was_loaded_stays(tmp_path: Path) -> None:
    async with models(tmp_path) as loaded:
        for instead_of in ("", "tiny"):
            with pytest.raises(BadRequest, match=r"broken\.gguf"):
                await loaded.load("broken", instead_of=instead_of)
        with pytest.raises(BadRequest, match="no model 'none'"):
            await loaded.load("none")
        for path in ("/etc/passwd", "passwd.gguf", str(ggufs.tiny_calm())):
            with pytest.raises(BadRequest, match="is a file; name a model of this machine"):
                await loaded.load(path)
        with pytest.raises(ModelNotFound, match="'other' is not loaded; loaded: tiny"):
            await loaded.load("calm", instead_of="other")
        assert loaded.states() == {"tiny": "ready"}


async def test_what_had_to_go_comes_back_if_its_successor_cannot_be_loaded(tmp_path: Path) -> None:
    async with models(tmp_path) as loaded:
        spoilt = tmp_path / "spoilt.gguf"
        spoilt.write_bytes(ggufs.tiny_calm().read_bytes()[:-1000])  # a header like any other
        ModelRegistry(tmp_path).add(spoilt, name="spoilt")
        with pytest.raises(BadRequest, match="spoilt"):
            await loaded.load("spoilt", instead_of="tiny")
        assert loaded.states() == {"tiny": "ready"}
        assert await (await loaded.engines()["tiny"].submit(greedy())).all()


@pytest.mark.parametrize("trouble", [{"speculation": "draft", "draft_model": str(NANO)}, {"embedder": "/none.gguf"}])
async def test_a_model_that_fails_half_loaded_leaves_nothing_in_memory(tmp_path: Path, trouble: dict[str, Any]) -> None:
    path = tmp_path / "half.gguf"
    shutil.copy(ggufs.tiny_calm(), path)
    with pytest.raises(ModelFileError):
        await load_engine(path, model_id="half", settings=msgspec.structs.replace(SETTINGS, **trouble))
    assert not is_mapped(path)


async def test_unloading_the_last_leaves_none_and_another_can_come(tmp_path: Path) -> None:
    async with models(tmp_path) as loaded:
        await loaded.unload("tiny")
        assert (loaded.default, loaded.states()) == (None, {})
        with pytest.raises(ModelNotFound, match="loaded: none"):
            await loaded.unload("tiny")
        await loaded.load("tiny")
        assert list(loaded.engines()) == ["tiny"]


async def test_a_need_is_told_from_the_header_as_the_loaded_model_tells_it() -> None:
    from atlas.engine.runner import Model

    for path in (ggufs.tiny_random(), ggufs.tiny_calm()):
        model = Model(path, gpu_layers=0)
        need = need_of(path, SETTINGS)
        assert need == (path.stat().st_size, 512 * kv_bytes_per_cell(model), HOST_RESERVE_BYTES)
        model.close()
