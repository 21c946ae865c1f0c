"""Batched generation for the evaluator: k candidates share one prompt's KV cells and are decoded together.

Everything else asks for text through `Generator.generate` only; the model's distribution is sampled as it is (temperature, no
top-k, no top-p), so that figures do not depend on anybody's sampler.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

MAX_CANDIDATES = 64
CONTEXT_CELLS = 16_384  # 64 candidates of 220 tokens behind a prompt of 2,000
BATCH_TOKENS = 512
SPECIAL_PIECE_BYTES = 64


class Generator:
    """One model and one context; not thread-safe.

    Raises:
        FileNotFoundError: there is no such model file.
        ValueError: llama.cpp cannot read it.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"no model at {path}; `python -m nano.export` writes one")
        llama_cpp.llama_log_set(_ignore_log, ctypes.c_void_p(0))
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise ValueError(f"llama.cpp cannot read {path}")
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        self._context = llama_cpp.llama_init_from_model(self._model, _context_params(threads))
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def tokenize(self, text: str) -> list[int]:
        """Ids, special tokens parsed, nothing added."""
        data = text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self._vocabulary, data, len(data), ids, len(ids), False, True)
        return list(ids[:count])

    def detokenize(self, ids: list[int]) -> str:
        """Text, special tokens included; broken UTF-8 is replaced."""
        return b"".join(map(self._piece, ids)).decode("utf-8", "replace")

    def generate(
        self, prompt: str, *, num_candidates: int, temperature: float, seed: int = 0, max_tokens: int = 256
    ) -> list[str]:
        """Answers to a rendered prompt, without the end-of-turn token; `temperature` 0 is greedy.

        An answer that reaches `max_tokens` is cut there. Equal arguments give equal answers on one machine.
        """
        rng = np.random.default_rng(seed)
        answers: list[list[int]] = [[] for _ in range(num_candidates)]
        ids = self.tokenize(prompt)
        logits = np.repeat(self._prefill(ids), num_candidates, axis=0)  # (num_candidates, vocab)
        running = list(range(num_candidates))
        for index in running[1:]:
            llama_cpp.llama_memory_seq_cp(self._memory, 0, index, -1, -1)
        for position in range(len(ids), len(ids) + max_tokens):
            chosen = _choose(logits, temperature, rng)
            kept = [(index, token) for index, token in zip(running, chosen, strict=True) if not self._ends(token)]
            if not kept:
                break
            for index, token in kept:
                answers[index].append(token)
            running = [index for index, _ in kept]
            logits = self._decode([(token, position, index) for index, token in kept], num_logits=len(kept))
        return [self.detokenize(answer) for answer in answers]

    def _prefill(self, ids: list[int]) -> Any:
        llama_cpp.llama_memory_clear(self._memory, True)
        for start in range(0, len(ids), BATCH_TOKENS):
            chunk = ids[start : start + BATCH_TOKENS]
            logits = self._decode([(token, start + offset, 0) for offset, token in enumerate(chunk)], num_logits=1)
        return logits

    def _decode(self, rows: list[tuple[int, int, int]], *, num_logits: int) -> Any:
        """Decode (token, position, sequence) rows; logits of the last `num_logits` rows, float32 (num_logits, vocab)."""
        batch, first = self._batch, len(rows) - num_logits
        batch.n_tokens = len(rows)
        for index, (token, position, sequence) in enumerate(rows):
            batch.token[index], batch.pos[index], batch.n_seq_id[index] = token, position, 1
            batch.seq_id[index][0], batch.logits[index] = sequence, index >= first
        code = llama_cpp.llama_decode(self._context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code} for {len(rows)} rows; fewer candidates need fewer cells")
        flat = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), (num_logits, self._vocab_size))
        return flat.copy()

    def _ends(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self._vocabulary, token))

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(SPECIAL_PIECE_BYTES * 4)
        size = llama_cpp.llama_token_to_piece(self._vocabulary, token, buffer, len(buffer), 0, True)
        return bytes(buffer.raw[:size])


def _context_params(threads: int) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_seq_max, params.kv_unified = CONTEXT_CELLS, MAX_CANDIDATES, True
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    params.n_threads = params.n_threads_batch = threads
    return params


def _choose(logits: Any, temperature: float, rng: np.random.Generator) -> list[int]:
    """One token per row; Gumbel's trick draws from softmax(logits / temperature)."""
    if temperature == 0:
        return [int(token) for token in logits.argmax(axis=1)]
    noisy = logits / temperature + rng.gumbel(size=logits.shape)
    return [int(token) for token in noisy.argmax(axis=1)]


def _discard(_level: int, _text: bytes, _data: Any) -> None:
    """llama.cpp reports every tensor; errors come back as return values."""


_ignore_log = llama_cpp.llama_log_callback(_discard)  # C keeps the pointer: it must live as long as the process
