"""Sampler chains of llama.cpp, and the scratch they draw from."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from atlas.engine.binding import c, fast
from atlas.engine.runner import Rows, Tokens
from atlas.errors import EngineFailed

_ENTRY = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


class Chain:
    """A C sampler chain over few candidates: top-k, top-p, min-p, temperature, then one draw from the seed's generator.

    The seeded generator advances once per draw, so the same seed and candidates give the same tokens.
    """

    def __init__(self, *, seed: int, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
        self.handle = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
        samplers = [c.llama_sampler_init_top_k(top_k)] if top_k > 0 else []
        samplers += [c.llama_sampler_init_top_p(top_p, 1)] if top_p < 1.0 else []
        samplers += [c.llama_sampler_init_min_p(min_p, 1)] if min_p > 0.0 else []
        samplers += [c.llama_sampler_init_temp(temperature), c.llama_sampler_init_dist(seed)]
        for sampler in samplers:
            c.llama_sampler_chain_add(self.handle, sampler)

    def close(self) -> None:
        if self.handle:
            fast.llama_sampler_free(self.handle)
            self.handle = None


class Candidates:
    """Scratch, one per thread: the tokens of all rows of a step behind each other, as a chain reads and overwrites them."""

    def __init__(self) -> None:
        self._entries: Any = np.empty(0, _ENTRY)
        self._start = 0
        self._array = c.llama_token_data_array()
        self._pointer = ctypes.addressof(self._array)
        self._data = ctypes.c_void_p.from_address(self._pointer)  # the array's first field, as a number

    def fill(self, ids: Tokens, logits: Rows) -> None:
        """Take the tokens of a step, each (tokens,)."""
        if len(ids) > len(self._entries):
            self._entries = np.empty(2 * len(ids), _ENTRY)
            self._start = self._entries.ctypes.data
        self._entries["id"][: len(ids)] = ids
        self._entries["logit"][: len(ids)] = logits

    def draw(self, chain: Chain, first: int, last: int) -> tuple[int, float]:
        """One of the tokens `first` to `last`, and its logit as the chain has left it: divided by the temperature."""
        array = self._array
        self._data.value = self._start + first * _ENTRY.itemsize  # the chain may have put another array there, or shrunk it
        array.size, array.selected, array.sorted = last - first, -1, False
        fast.llama_sampler_apply(chain.handle, self._pointer)
        if array.selected < 0 or not self._data.value:
            raise EngineFailed("sampler chain selected nothing")
        drawn = c.llama_token_data.from_address(self._data.value + array.selected * _ENTRY.itemsize)
        return drawn.id, drawn.logit
