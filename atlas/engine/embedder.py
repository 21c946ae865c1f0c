"""Embedding models: hidden states of the loaded GGUF, another GGUF, or MiniLM in a child process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from atlas.engine.runner import EmbeddingRunner, Model
from atlas.errors import BadRequest, ContextLengthExceeded
from atlas.types import Embeddings

CONTEXT_TOKENS = 2048  # longest input read; chosen, unmeasured


class Embedder(Protocol):
    """Text to unit vectors."""

    name: str
    width: int

    async def embed(self, inputs: Sequence[str | tuple[int, ...]]) -> Embeddings: ...

    async def close(self) -> None: ...


class ModelEmbedder:
    """Mean of a GGUF model's last hidden states, in a context and on a thread of its own, so that no decode step waits for it.

    For an embedding model (BERT, Qwen3-Embedding, nomic) that is what the model was made for, with the pooling its header names.
    For a chat model it is a stop-gap: it works, it is not good.
    """

    def __init__(self, model: Model, *, name: str | None = None) -> None:
        self.name = name or model.path.stem
        self.width = model.width
        self._model = model
        self._runner: EmbeddingRunner | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")

    async def embed(self, inputs: Sequence[str | tuple[int, ...]]) -> Embeddings:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, list(inputs))

    async def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        if self._runner is not None:
            self._runner.close()

    def _embed(self, inputs: list[str | tuple[int, ...]]) -> Embeddings:
        runner = self._runner = self._runner or EmbeddingRunner(self._model, context_tokens=self._limit)
        batches = [self._tokens(index, item) for index, item in enumerate(inputs)]
        vectors = [runner.embed(tokens) for tokens in batches]
        unit = [vector / max(float(np.linalg.norm(vector)), 1e-12) for vector in vectors]
        return Embeddings(
            vectors=tuple(tuple(vector.tolist()) for vector in unit), num_tokens=sum(map(len, batches)), model=self.name
        )

    def _tokens(self, index: int, item: str | tuple[int, ...]) -> list[int]:
        vocab = self._model.vocab
        tokens = vocab.tokenize(item, special=False) if isinstance(item, str) else list(item)
        if not tokens:
            raise BadRequest(f"input {index} is empty", param="input")
        if any(not 0 <= token < vocab.size for token in tokens):
            raise BadRequest(f"input {index} has a token id outside the vocabulary of {vocab.size}", param="input")
        if vocab.adds_bos:
            tokens = [vocab.bos, *tokens]
        if len(tokens) > self._limit:
            raise ContextLengthExceeded(f"input {index} has {len(tokens)} tokens; {self.name} reads {self._limit}", param="input")
        return tokens

    @property
    def _limit(self) -> int:
        return min(CONTEXT_TOKENS, self._model.train_context_tokens)
