"""Tiny Qwen3 models made from nothing, as GGUF files: one that follows a script, one with random weights.

Both have one token per byte, Qwen's control tokens, and the tags <think> and <tool_call>. The scripted one is a first-order
Markov chain (attention and feed-forward give zero, so the logits depend on the last token alone): its answers and its
probabilities are known exactly, but it cannot show whether the KV cache is right. The random one can: every token depends on all
before it.
"""

from __future__ import annotations

import atexit
import functools
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray

from tests.gguf_vocabulary import END, Vocabulary

Array = NDArray[Any]
Branch = Mapping[str, float]  # piece -> probability; all of them lead to the step that follows
Script = str | Sequence[str | Branch]

_quiet = llama_cpp.llama_log_callback(lambda _level, _text, _user: None)  # must outlive every call that may log
PEAK = 20.0  # logit of what the script says next, all others 0: one token in e**20 / vocabulary goes astray

# The prompt for an answer ends in a newline, after a tool's result in a tab: a chain sees the last token only.
TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\nYou may call these tools by <tool_call>:' }}
{%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n' + {'name': call.function.name, 'arguments': call.function.arguments} | tojson + '\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant' + ('\\t' if messages[-1].role == 'tool' else '\\n') }}
{%- if enable_thinking is defined and enable_thinking is false and messages[-1].role != 'tool' %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}"""

ANSWER = "<think>\nplan.\n</think>\n\nHello world!\n"
TOOL_LOOP: Mapping[str, Script] = {
    "\n": '<think>\nI should add.\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>',
    "\t": "The sum is 3.",
}


def scripted_gguf(
    path: Path,
    scripts: Mapping[str, Script],
    *,
    context_tokens: int = 4096,
    template: str = TEMPLATE,
    layers: int = 2,
    least_width: int = 0,
    wrong_every: int = 0,
) -> Path:
    """A model that answers by script.

    Args:
        scripts: what to say, by the last token of the prompt: a byte or a control token, such as "<|fim_middle|>". A text is cut
            into pieces of its own; a list gives the pieces, each of which may occur only once in the whole model. Elsewhere byte
            b is followed by byte b + 1, for ever, and anything else by the end.
        layers: which add nothing, but take their time; the more the wider they are.
        wrong_every: after every so many steps the model says "!" instead: a draft that is often right.
    """
    vocabulary = Vocabulary()
    chain = _Chain(vocabulary)
    for last, script in scripts.items():
        chain.add(last, vocabulary.cut(script) if isinstance(script, str) else script)
    size = len(vocabulary.tokens)
    width = math.ceil(max(size, least_width) / 32) * 32  # one-hot embeddings
    heads, kv_heads, head_dim, ffn = (4, 2, 16, 64) if layers == 2 else (12, 4, 64, 2 * width)
    shape = Shape(layers, width, heads, kv_heads, head_dim, ffn, context_tokens)
    writer = begin(path, vocabulary, shape, template)
    writer.add_tensor("token_embd.weight", np.eye(size, width, dtype=np.float32))
    # RMSNorm of a one-hot vector is sqrt(width) times it
    chain.spoil(wrong_every)
    writer.add_tensor("output.weight", (chain.logits(width) / math.sqrt(width)).astype(np.float32))
    add_layers(writer, shape, _drawn(writer, np.random.default_rng(0), np.float32 if layers == 2 else np.float16), gain=0.0)
    return end(writer, path)


def random_gguf(
    path: Path,
    *,
    seed: int = 0,
    sharpen: float = 8.0,
    gain: float = 1.5,
    vocab_pad: int = 0,
    layers: int = 2,
    embd: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    ctx: int = 4096,
    dtype: Any = np.float32,
    template: str = TEMPLATE,
) -> Path:
    """A model with random weights. It writes printable ASCII (and padding tokens), and never ends by itself.

    Args:
        sharpen: standard deviation of the logits; at 8 greedy's best token usually leads by more than 1.
        gain: what attention and feed-forward add to the residual; above 1 float noise of one token grows with every later one.
        vocab_pad: fill the vocabulary up to this size with tokens [PAD256], ...: 151,936 costs what Qwen3's does.
    """
    vocabulary = Vocabulary(pad_to=vocab_pad)
    size = len(vocabulary.tokens)
    rng = np.random.default_rng(seed)
    shape = Shape(layers, embd, heads, kv_heads, head_dim, 2 * embd, ctx)
    output = rng.standard_normal((size, embd), dtype=np.float32) * (sharpen / math.sqrt(embd))
    output[[token for token in range(vocabulary.num_basic) if not 32 <= token < 127]] = 0.0
    writer = begin(path, vocabulary, shape, template)
    writer.add_tensor("token_embd.weight", rng.standard_normal((size, embd), dtype=np.float32).astype(dtype))
    writer.add_tensor("output.weight", output.astype(dtype))
    add_layers(writer, shape, _drawn(writer, rng, dtype), gain=gain)
    return end(writer, path)


def hybrid_gguf(path: Path, *, layers: int = 4, embd: int = 64, reach: int = 3, sharpen: float = 8.0) -> Path:
    """A hybrid model with random weights; a convolution looks at `reach` tokens."""
    vocabulary, rng = Vocabulary(), np.random.default_rng(0)
    shape = Shape(layers, embd, heads=4, kv_heads=2, head_dim=embd // 4, ffn=2 * embd, context_tokens=4096)
    writer = begin(path, vocabulary, shape, architecture="lfm2", kv_heads=[0 if layer % 2 else 2 for layer in range(layers)])
    writer.add_shortconv_l_cache(reach)
    size = len(vocabulary.tokens)
    output = rng.standard_normal((size, embd), dtype=np.float32) * (sharpen / math.sqrt(embd))
    output[[token for token in range(vocabulary.num_basic) if not 32 <= token < 127]] = 0.0
    writer.add_tensor("token_embd.weight", rng.standard_normal((size, embd), dtype=np.float32))
    writer.add_tensor("output.weight", output)
    writer.add_tensor("token_embd_norm.weight", np.ones(embd, np.float32))  # the last one's: so it is called there
    matrix = _drawn(writer, rng, np.float32)
    for layer in range(layers):
        block = f"blk.{layer}."
        if layer % 2:
            convolution = rng.standard_normal((embd, reach), dtype=np.float32)
            writer.add_tensor(f"{block}shortconv.conv.weight", convolution)
            matrix(f"{block}shortconv.in_proj", 3 * embd, embd, 1.0)
            matrix(f"{block}shortconv.out_proj", embd, embd, 0.5)
        else:
            add_attention(writer, shape, matrix, block, gain=0.5)
        add_feed_forward(writer, shape, matrix, block, gain=0.5)
    return end(writer, path)


def lora_gguf(
    path: Path,
    base: Path,
    *,
    seed: int,
    gain: float = 1.0,
    rank: int = 4,
    alpha: float = 4.0,
    architecture: str = "qwen3",
    only: Mapping[str, Array] | None = None,
) -> Path:
    """A random LoRA for every matrix of the layers of `base`; at gain 1 about as large as the weights it is added to.

    Args:
        only: tensors to write instead of those, by name.
    """
    rng = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    for tensor in gguf.GGUFReader(base).tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            inputs, outputs = (int(size) for size in tensor.shape)
            tensors[tensor.name + ".lora_a"] = rng.standard_normal((rank, inputs), dtype=np.float32) / math.sqrt(inputs)
            tensors[tensor.name + ".lora_b"] = rng.standard_normal((outputs, rank), dtype=np.float32) * (gain / math.sqrt(rank))
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for name, values in (tensors if only is None else only).items():
        writer.add_tensor(name, values)
    return end(writer, path)


@functools.cache
def calm_lora(seed: int) -> Path:
    """An adapter of `tiny_calm` that changes nearly every answer, once per session."""
    return lora_gguf(session_folder() / f"calm-lora-{seed}.gguf", tiny_calm(), seed=seed, gain=0.5)


def quantised(whole: Path, path: Path, ftype: int) -> Path:
    """A model in one of llama.cpp's file types (enum llama_ftype); the one it is made of is deleted."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype
    llama_cpp.llama_log_set(_quiet, None)
    if code := llama_cpp.llama_model_quantize(str(whole).encode(), str(path).encode(), params):
        raise RuntimeError(f"llama.cpp could not quantise {whole}: {code}")
    whole.unlink()
    return path


@functools.cache
def session_folder() -> Path:
    """A folder for models that last as long as this process."""
    folder = Path(tempfile.mkdtemp(prefix="atlas-ggufs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def tiny_scripted() -> Path:
    """Thinks "plan.", then says "Hello world!", once per session."""
    return scripted_gguf(session_folder() / "scripted.gguf", {"\n": ANSWER, "\t": "Done."})


@functools.cache
def tiny_tool_loop() -> Path:
    """Calls `add`, and after its result says "The sum is 3."."""
    return scripted_gguf(session_folder() / "tool_loop.gguf", TOOL_LOOP)


@functools.cache
def tiny_random() -> Path:
    """Random weights, sharpened."""
    return random_gguf(session_folder() / "random.gguf")


@functools.cache
def tiny_calm() -> Path:
    """Random weights in which float noise does not grow, for comparing runs whose batches differ."""
    return random_gguf(session_folder() / "calm.gguf", gain=0.5)


@functools.cache
def tiny_draft() -> Path:
    """What layers add is a fifth less than in `tiny_calm`, so that it mostly guesses what that says."""
    return random_gguf(session_folder() / "draft.gguf", gain=0.4)


@functools.cache
def tiny_k_quants() -> Path:
    """`tiny_random`, four times as wide, in Q4_K_M."""
    whole = random_gguf(session_folder() / "whole.gguf", embd=256, dtype=np.float16)
    return quantised(whole, session_folder() / "k-quants.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M)


@functools.cache
def tiny_hybrid() -> Path:
    """As `tiny_calm`, but every other layer is a short convolution with a state instead of attention (LFM2)."""
    return hybrid_gguf(session_folder() / "hybrid.gguf")


class _Chain:
    """Which token follows which, with what probability."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._next: dict[int, dict[int, float]] = {}

    def add(self, last: str, script: Sequence[str | Branch]) -> None:
        before = [self._vocabulary.id(last)]
        for step in [*script, END]:
            chances = {step: 1.0} if isinstance(step, str) else step
            ids = {self._vocabulary.add(piece): chance for piece, chance in chances.items()}
            for token in before:
                if token in self._next:
                    raise ValueError(f"two steps follow {self._vocabulary.tokens[token]!r}")
                self._next[token] = ids
            before = [token for token in ids if token != self._vocabulary.id(END)]

    def spoil(self, every: int) -> None:
        if every:
            wrong = self._vocabulary.id("!")
            self._next.update({token: {wrong: 1.0} for token in list(self._next)[every - 1 :: every]})

    def logits(self, width: int) -> Array:
        """(vocabulary, width): column = the token before, row = the token after."""
        size = len(self._vocabulary.tokens)
        logits = np.zeros((size, width), dtype=np.float32)
        for token in range(size):
            other = (token + 1) % 256 if token < 256 else self._vocabulary.id(END)
            for after, chance in self._next.get(token, {other: 1.0}).items():
                logits[after, token] = PEAK + math.log(chance)
        return logits


class Shape(NamedTuple):
    """Sizes of a Qwen3 network."""

    layers: int
    embd: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context_tokens: int


Matrix = Callable[[str, int, int, float], None]  # adds a weight: name, rows, columns, how much it is scaled


def begin(
    path: Path,
    vocabulary: Vocabulary,
    shape: Shape,
    template: str = TEMPLATE,
    *,
    architecture: str = "qwen3",
    kv_heads: Sequence[int] = (),
) -> gguf.GGUFWriter:
    """A file with its header said, to which tensors are added, and then `end`; `kv_heads` of each layer, where they differ."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(path.stem)
    writer.add_context_length(shape.context_tokens)
    writer.add_embedding_length(shape.embd)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(kv_heads or shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(vocabulary.id(END))
    writer.add_pad_token_id(vocabulary.id("<|endoftext|>"))
    writer.add_bos_token_id(vocabulary.id("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)
    return writer


def add_layers(writer: gguf.GGUFWriter, shape: Shape, matrix: Matrix, *, gain: float = 1.0) -> None:
    """All weights but embedding and output; `gain` scales what attention and feed-forward add to the residual."""
    writer.add_tensor("output_norm.weight", np.ones(shape.embd, dtype=np.float32))
    for layer in range(shape.layers):
        add_attention(writer, shape, matrix, f"blk.{layer}.", gain=gain)
        add_feed_forward(writer, shape, matrix, f"blk.{layer}.", gain=gain)


def add_attention(writer: gguf.GGUFWriter, shape: Shape, matrix: Matrix, block: str, *, gain: float) -> None:
    matrix(block + "attn_q", shape.heads * shape.head_dim, shape.embd, 1.0)
    matrix(block + "attn_k", shape.kv_heads * shape.head_dim, shape.embd, 1.0)
    matrix(block + "attn_v", shape.kv_heads * shape.head_dim, shape.embd, 1.0)
    matrix(block + "attn_output", shape.embd, shape.heads * shape.head_dim, gain)
    for name in ("attn_q_norm", "attn_k_norm"):
        writer.add_tensor(f"{block}{name}.weight", np.ones(shape.head_dim, dtype=np.float32))


def add_feed_forward(writer: gguf.GGUFWriter, shape: Shape, matrix: Matrix, block: str, *, gain: float) -> None:
    """And the norm of what comes before it."""
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"{block}{name}.weight", np.ones(shape.embd, dtype=np.float32))
    matrix(block + "ffn_gate", shape.ffn, shape.embd, 1.0)
    matrix(block + "ffn_up", shape.ffn, shape.embd, 1.0)
    matrix(block + "ffn_down", shape.embd, shape.ffn, gain)


def _drawn(writer: gguf.GGUFWriter, rng: np.random.Generator, dtype: Any) -> Matrix:
    """Weights that keep the variance."""

    def matrix(name: str, rows: int, columns: int, scale: float) -> None:
        weights = rng.standard_normal((rows, columns), dtype=np.float32) * (scale / math.sqrt(columns))
        writer.add_tensor(name + ".weight", weights.astype(dtype))

    return matrix


def end(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
