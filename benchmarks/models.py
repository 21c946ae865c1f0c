"""Models with random weights, of the shapes that the benchmarks need."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray

from tests.gguf_vocabulary import Vocabulary
from tests.ggufs import Shape, add_layers, begin, end, quantised, random_gguf, scripted_gguf

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
    return quantised(whole, folder / "qwen3-600m.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M)


EDITED = tuple(f" word{number}" for number in range(300))


class Copyist(NamedTuple):
    """A model that rewrites a text which its prompt holds, one that guesses four of five of its tokens, and the text's ids."""

    model: Path
    draft: Path
    text: tuple[int, ...]


def copyist(folder: Path) -> Copyist:
    """12 layers as wide as those of `compute` that add nothing: what it says after "?" is EDITED, whatever its prompt held."""
    script = {"?": EDITED}
    model = scripted_gguf(folder / "copyist.gguf", script, layers=12, least_width=768)
    draft = scripted_gguf(folder / "copyist-draft.gguf", script, wrong_every=5)
    vocabulary = Vocabulary()
    return Copyist(model, draft, tuple(vocabulary.add(piece) for piece in EDITED))


QWEN3_14B = Shape(layers=40, embd=5120, heads=40, kv_heads=8, head_dim=128, ffn=17_408, context_tokens=32_768)
REHEARSAL = Shape(layers=2, embd=1024, heads=8, kv_heads=2, head_dim=128, ffn=2048, context_tokens=32_768)
BLOCK = 256  # weights
Q4_K_BYTES, Q6_K_BYTES = 144, 210


def random_blocks(folder: Path, shape: Shape, *, seed: int = 0) -> Path:
    """A Qwen3 model whose weights are random bytes in valid blocks: Q4_K, the output in Q6_K, norms of one.

    Nothing is quantised, so 9 GB are written as fast as they are drawn. Scales are such that weights have a mean of about zero
    and the deviation 1/sqrt(columns).
    """
    path = folder / f"qwen3-blocks-{shape.layers}.gguf"
    writer, rng = begin(path, Vocabulary(pad_to=FULL_VOCABULARY), shape), np.random.default_rng(seed)

    def matrix(name: str, rows: int, columns: int, _scale: float) -> None:
        writer.add_tensor(f"{name}.weight", q4_k(rng, rows, columns), raw_dtype=gguf.GGMLQuantizationType.Q4_K)

    matrix("token_embd", FULL_VOCABULARY, shape.embd, 1.0)
    output = q6_k(rng, FULL_VOCABULARY, shape.embd)
    writer.add_tensor("output.weight", output, raw_dtype=gguf.GGMLQuantizationType.Q6_K)
    add_layers(writer, shape, matrix)
    return end(writer, path)


def q4_k(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    """Blocks of 256: d and dmin (f16), 12 bytes of eight 6-bit scales and minima, 128 bytes of 4-bit numbers; (rows, bytes).

    A weight is d * scale * number - dmin * minimum; with dmin = 7.5 d its mean is zero, its deviation 240 d.
    """
    blocks = rng.integers(0, 256, (rows, columns // BLOCK, Q4_K_BYTES), np.uint8)
    d = 1.0 / (240.0 * math.sqrt(columns))
    blocks[..., :4] = np.array([d, 7.5 * d], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def q6_k(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    """Blocks of 256: 192 bytes of 6-bit numbers, 16 signed scales, d (f16); (rows, bytes).

    A weight is d * scale * (number - 32): mean zero, deviation 1,370 d.
    """
    blocks = rng.integers(0, 256, (rows, columns // BLOCK, Q6_K_BYTES), np.uint8)
    blocks[..., -2:] = np.array([1.0 / (1370.0 * math.sqrt(columns))], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)
