"""Models with random weights, of the shapes that the benchmarks need."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray

from tests.ggufs import Vocabulary, random_gguf

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


class Shape(NamedTuple):
    """Sizes of a Qwen3 network; every width is a multiple of 256, the length of a block."""

    layers: int
    embd: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int = FULL_VOCABULARY


QWEN3_14B = Shape(layers=40, embd=5120, heads=40, kv_heads=8, head_dim=128, ffn=17_408)
REHEARSAL = Shape(layers=2, embd=1024, heads=8, kv_heads=2, head_dim=128, ffn=2048)
BLOCK = 256  # weights
Q4_K_BYTES, Q6_K_BYTES = 144, 210


def random_blocks(folder: Path, shape: Shape, *, seed: int = 0) -> Path:
    """A Qwen3 model whose weights are random bytes in valid blocks: Q4_K, the output in Q6_K, norms of one.

    Nothing is quantised, so 9 GB are written as fast as they are drawn. Scales are such that weights have a mean of about zero
    and the deviation 1/sqrt(columns).
    """
    path = folder / f"qwen3-blocks-{shape.layers}.gguf"
    writer, rng = _header(path, shape), np.random.default_rng(seed)

    def matrix(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(f"{name}.weight", q4_k(rng, rows, columns), raw_dtype=gguf.GGMLQuantizationType.Q4_K)

    def norm(name: str, size: int) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(size, np.float32))

    matrix("token_embd", shape.vocabulary, shape.embd)
    output = q6_k(rng, shape.vocabulary, shape.embd)
    writer.add_tensor("output.weight", output, raw_dtype=gguf.GGMLQuantizationType.Q6_K)
    norm("output_norm", shape.embd)
    for layer in range(shape.layers):
        for name, size in (("attn_norm", shape.embd), ("ffn_norm", shape.embd)):
            norm(f"blk.{layer}.{name}", size)
        for name in ("attn_q_norm", "attn_k_norm"):
            norm(f"blk.{layer}.{name}", shape.head_dim)
        wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        sizes = {"attn_q": (wide, shape.embd), "attn_k": (narrow, shape.embd), "attn_v": (narrow, shape.embd)}
        sizes |= {"attn_output": (shape.embd, wide), "ffn_down": (shape.embd, shape.ffn)}
        for name, (rows, columns) in (sizes | {"ffn_gate": (shape.ffn, shape.embd), "ffn_up": (shape.ffn, shape.embd)}).items():
            matrix(f"blk.{layer}.{name}", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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


def _header(path: Path, shape: Shape) -> gguf.GGUFWriter:
    vocabulary = Vocabulary(pad_to=shape.vocabulary)
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_name(path.stem)
    writer.add_context_length(32_768)
    writer.add_embedding_length(shape.embd)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(vocabulary.id("<|im_end|>"))
    writer.add_pad_token_id(vocabulary.id("<|endoftext|>"))
    return writer


_quiet = llama_cpp.llama_log_callback(lambda _level, _text, _user: None)  # must outlive every call that may log
