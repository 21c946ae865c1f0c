"""A context of llama.cpp that pools hidden states into one vector per text."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from atlas.engine.binding import c
from atlas.engine.runner import Batch, Model, Rows
from atlas.errors import EngineFailed, ModelFileError


class EmbeddingRunner:
    """Owned by one thread."""

    def __init__(self, model: Model, *, context_tokens: int, threads: int = 1) -> None:
        params = c.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = params.n_outputs_max = context_tokens
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = threads
        params.embeddings = True
        if model.meta(f"{model.architecture}.pooling_type") is None:
            params.pooling_type = c.LLAMA_POOLING_TYPE_MEAN
        with model.adapters_lock:
            self._handle = c.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise ModelFileError(f"{model.path} cannot compute embeddings")
        self._width = model.width
        self._memory = c.llama_get_memory(self._handle)
        self._batch = Batch(context_tokens)

    def embed(self, tokens: Seq[int]) -> Rows:
        """The pooled vector of one text, (width,), not normalised."""
        if self._memory:
            c.llama_memory_clear(self._memory, True)
        self._batch.clear()
        self._batch.add((0,), 0, tokens, output=True)
        self._batch.outputs[: len(tokens)] = 1
        if (code := c.llama_decode(self._handle, self._batch.as_struct())) != 0:
            raise EngineFailed(f"embedding failed with {code} on {len(tokens)} tokens")
        pointer = c.llama_get_embeddings_seq(self._handle, 0)
        if not pointer:
            raise EngineFailed("this model gives no pooled embedding")
        return np.ctypeslib.as_array(pointer, shape=(self._width,)).copy()

    def close(self) -> None:
        if self._handle:
            c.llama_free(self._handle)
            self._handle = None
