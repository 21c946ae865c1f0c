"""Models with random weights, of the shapes that the benchmarks need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from tests.ggufs import random_gguf

FULL_VOCABULARY = 151_936  # Qwen3's


def vocabulary(folder: Path) -> Path:
    """Qwen3's vocabulary and next to no layers: sampling and Python dominate."""
    return random_gguf(folder / "vocabulary.gguf", vocab_pad=FULL_VOCABULARY, dtype=np.float16)


def compute(folder: Path) -> Path:
    """85 M parameters in 12 layers: matrices dominate."""
    shape: dict[str, Any] = {"layers": 12, "embd": 768, "heads": 12, "kv_heads": 4, "head_dim": 64}
    return random_gguf(folder / "compute.gguf", vocab_pad=32_000, dtype=np.float16, ctx=8192, **shape)


def qwen3_600m(folder: Path) -> Path:
    """The shape of Qwen3-0.6B but for feed-forwards of 2,048 instead of 3,072; Q4_K_M. Needs 3 GB of memory while it is made."""
    shape: dict[str, Any] = {"layers": 28, "embd": 1024, "heads": 16, "kv_heads": 8, "head_dim": 128, "ctx": 32_768}
    whole = random_gguf(folder / "whole.gguf", vocab_pad=FULL_VOCABULARY, dtype=np.float16, **shape)
    small = folder / "qwen3-600m.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    llama_cpp.llama_log_set(_quiet, None)
    if code := llama_cpp.llama_model_quantize(str(whole).encode(), str(small).encode(), params):
        raise SystemExit(f"llama.cpp could not quantise {whole}: {code}")
    whole.unlink()
    return small


_quiet = llama_cpp.llama_log_callback(lambda _level, _text, _user: None)  # must outlive every call that may log
