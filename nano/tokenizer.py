"""The byte-level BPE tokenizer with Qwen2's pre-tokenizer, in the form that transformers and llama.cpp both read.

There is no normaliser: llama.cpp applies none, and the two must agree on every byte.
"""

from __future__ import annotations

import inspect
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano.corpus import records, text_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCAB_SIZE = 2048
CONTROL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
VISIBLE_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
# https://huggingface.co/Qwen/Qwen2-7B/blob/main/tokenizer.json; llama.cpp knows it as "qwen2"
QWEN2_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
NUM_RECORDS = 6_000
CORPUS_SEED = 0
# Half of the text is real Python with English docstrings, so that text outside the task distribution is not cut into bytes.
STANDARD_MODULES = ("argparse", "ast", "bisect", "collections", "csv", "functools", "heapq", "json.decoder", "logging", "pathlib")


def train_tokenizer(path: Path) -> None:
    """Learn the merges and write `tokenizer.json`; the same Python gives the same file."""
    from tokenizers import trainers  # the serving code must not pull it in

    tokenizer = _untrained()
    special = [*CONTROL_TOKENS, *VISIBLE_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=special, initial_alphabet=_alphabet(), min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    path.write_text(json.dumps(_mark_visible(json.loads(tokenizer.to_str())), ensure_ascii=False, indent=1) + "\n", "utf-8")


def load_tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def _untrained() -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _texts() -> Iterator[str]:
    # Without the special tokens, or the merges would learn to spell them.
    special = re.compile("|".join(map(re.escape, [*CONTROL_TOKENS, *VISIBLE_TOKENS])))
    for record in itertools.islice(records(CORPUS_SEED), NUM_RECORDS):
        yield from special.split(text_of(record))
    for name in STANDARD_MODULES:
        module = __import__(name, fromlist=["_"])
        yield inspect.getsource(module)


def _mark_visible(description: dict[str, Any]) -> dict[str, Any]:
    """Tokens that are part of the text stay in it when special tokens are skipped."""
    for token in description["added_tokens"]:
        token["special"] = token["content"] not in VISIBLE_TOKENS
    return description
