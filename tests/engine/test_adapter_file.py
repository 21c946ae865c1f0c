"""Which LoRA files are refused, and in what words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atlas.engine import load_engine
from atlas.errors import BadRequest, ModelFileError
from atlas.settings import AdapterSettings, EngineSettings
from tests import ggufs
from tests.engine.test_adapters import asked
from tests.engine.test_llama import running

A, B = "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"


def zeros(*shape: int) -> ggufs.Array:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({A: zeros(4, 64)}, "one half only of the pair for 'blk.0.attn_q.weight'"),
        ({A: zeros(4, 32), B: zeros(64, 4)}, r"shapes \(32, 4\) and \(4, 64\) for 'blk.0.attn_q.weight' of \(64, 64\)"),
        ({A: zeros(4, 64), B: zeros(64, 5)}, r"shapes \(64, 4\) and \(5, 64\)"),
        ({A: zeros(64), B: zeros(64)}, r"shapes"),
        (
            {"blk.7.attn_q.weight.lora_a": zeros(4, 64), "blk.7.attn_q.weight.lora_b": zeros(64, 4)},
            "which the model does not have",
        ),
        ({"token_embd.weight.lora_a": zeros(270, 4), "token_embd.weight.lora_b": zeros(64, 5)}, "shapes"),
        ({"strange": zeros(4, 64)}, "'strange' that is no half of a LoRA pair"),
        ({A: np.zeros((4, 64), np.int32), B: zeros(64, 4)}, "numbers of ggml's type 26"),
        ({}, "changes no weight"),
    ],
)
async def test_a_file_that_does_not_fit_is_refused_with_the_reason(
    tensors: dict[str, ggufs.Array], reason: str, tmp_path: Path
) -> None:
    path = ggufs.lora_gguf(tmp_path / "bad.gguf", ggufs.tiny_calm(), seed=0, only=tensors)
    async with running(ggufs.tiny_calm()) as engine:
        with pytest.raises(ModelFileError, match=reason) as refused:
            await engine.load_adapter("bad", path)
        assert "bad.gguf" in refused.value.message
        assert "convert_lora_to_gguf.py" in refused.value.message
        assert engine.adapters() == ()


async def test_what_is_no_lora_of_this_architecture_is_named(tmp_path: Path) -> None:
    foreign = ggufs.lora_gguf(tmp_path / "foreign.gguf", ggufs.tiny_calm(), seed=0, architecture="llama")
    whole = ggufs.calm_lora(1).read_bytes()
    wrong = {
        tmp_path / "cut.gguf": (whole[: len(whole) - 100], "cut short"),
        tmp_path / "header.gguf": (whole[:300], "its header cannot be read"),
        tmp_path / "text.gguf": (b"not a model", "not a GGUF file"),
        tmp_path / "empty.gguf": (b"", "not a GGUF file"),
    }
    for path, (content, _) in wrong.items():
        path.write_bytes(content)
    faults = {path: reason for path, (_, reason) in wrong.items()} | {
        foreign: "made for the architecture 'llama', the engine runs 'qwen3'",
        ggufs.tiny_calm(): "is no adapter",
        tmp_path / "missing.gguf": "No such file",
    }
    async with running(ggufs.tiny_calm()) as engine:
        for path, reason in faults.items():
            with pytest.raises(ModelFileError, match=reason) as refused:
                await engine.load_adapter("bad", path)
            assert path.name in refused.value.message
        await asked(engine, "it still answers")


async def test_an_adapter_of_tied_embeddings_is_refused_as_llama_cpp_would_abort(tmp_path: Path) -> None:
    nano = Path(__file__).parents[2] / "models" / "nano" / "nano-q8_0.gguf"
    halves = {"token_embd.weight.lora_a": zeros(2048, 4), "token_embd.weight.lora_b": zeros(256, 4)}
    path = ggufs.lora_gguf(tmp_path / "tied.gguf", nano, seed=0, only=halves)
    async with running(nano) as engine:
        with pytest.raises(ModelFileError, match="tied embeddings"):
            await engine.load_adapter("tied", path)


@pytest.mark.parametrize(("name", "scale"), [("a:b", 1.0), ("", 1.0), ("A", 1.0), ("a", 0.0), ("a", float("nan")), ("a", 1e9)])
async def test_a_name_or_scale_that_cannot_be_one_is_refused(name: str, scale: float) -> None:
    async with running(ggufs.tiny_calm()) as engine:
        with pytest.raises(BadRequest, match=r"cannot name|scale is"):
            await engine.load_adapter(name, ggufs.calm_lora(1), scale=scale)


async def test_an_adapter_of_the_settings_that_cannot_be_loaded_is_named_at_the_start(tmp_path: Path) -> None:
    adapters = {"py": AdapterSettings(path=str(tmp_path / "gone.gguf"))}
    with pytest.raises(ModelFileError, match=r"engine\.adapters: 'py': .*gone\.gguf.*take it out"):
        await load_engine(ggufs.tiny_calm(), model_id="tiny", settings=EngineSettings(embedder="off", adapters=adapters))
