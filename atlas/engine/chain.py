"""Sampler chains of llama.cpp, and the scratch they draw from."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from atlas.engine.binding import c, fast
from atlas.engine.runner import Rows, Tokens
from atlas.errors import EngineFailed


class Chain:
    """A C sampler chain over few candidates: top-k, top-p, min-p, temperature, then one draw from the seed's generator.

    The seeded generator advances once per `select`, so the same seed and candidates give the same tokens.
    """

    def __init__(self, *, seed: int, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
        self._handle = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
        samplers = [c.llama_sampler_init_top_k(top_k)] if top_k > 0 else []
        samplers += [c.llama_sampler_init_top_p(top_p, 1)] if top_p < 1.0 else []
        samplers += [c.llama_sampler_init_min_p(min_p, 1)] if min_p > 0.0 else []
        samplers += [c.llama_sampler_init_temp(temperature), c.llama_sampler_init_dist(seed)]
        for sampler in samplers:
            c.llama_sampler_chain_add(self._handle, sampler)

    def select(self, candidates: Candidates, ids: Tokens, logits: Rows) -> int:
        """Draw one of `ids`; the scratch is the caller's, one per thread."""
        pointer = candidates.fill(ids, logits)
        fast.llama_sampler_apply(self._handle, pointer)
        return candidates.selected()

    def close(self) -> None:
        if self._handle:
            fast.llama_sampler_free(self._handle)
            self._handle = None


class Candidates:
    """Scratch for `Chain.select`: a llama_token_data_array with room for the whole vocabulary."""

    def __init__(self, vocab_size: int) -> None:
        self._data = (c.llama_token_data * vocab_size)()
        self._view: Any = np.ctypeslib.as_array(self._data)  # structured: id i4, logit f4, p f4
        self._array = c.llama_token_data_array(data=self._data, size=0, selected=-1, sorted=False)
        self._pointer = ctypes.addressof(self._array)
        self._base = ctypes.cast(self._data, c.llama_token_data_p)

    def fill(self, ids: Tokens, logits: Rows) -> int:
        count = len(ids)
        self._view["id"][:count] = ids
        self._view["logit"][:count] = logits
        self._array.data, self._array.size = self._base, count  # the chain may have replaced or shrunk them
        self._array.selected, self._array.sorted = -1, False
        return self._pointer

    def selected(self) -> int:
        index = self._array.selected
        if index < 0:
            raise EngineFailed("sampler chain selected nothing")
        return int(self._array.data[index].id)
