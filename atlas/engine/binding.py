"""The only door to llama.cpp. Two handles to one library.

Calls through `c` give up the GIL and are used for what takes milliseconds (load, decode); those through `fast` keep it, for what
takes microseconds. Measured: 100 short calls that give it up, beside one busy Python thread, take 5.1 ms, and 0.007 ms if they
keep it.
"""

from __future__ import annotations

import ctypes

import llama_cpp.llama_cpp as c

__all__ = ["c", "fast", "get_embeddings", "get_logits"]

fast = ctypes.PyDLL(c._lib._name)  # noqa: SLF001  the library the binding has already found and loaded

# Addresses as numbers: objects of ctypes cost ten times as much. They give up the GIL: on a GPU they wait for the decode.
get_logits, get_embeddings = c._lib["llama_get_logits"], c._lib["llama_get_embeddings"]  # noqa: SLF001
for _function in (get_logits, get_embeddings):
    _function.restype, _function.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

# (name, result, arguments): the microsecond calls
for _name, _result, _arguments in (
    (
        "llama_token_to_piece",
        ctypes.c_int32,
        [ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p] + [ctypes.c_int32] * 2 + [ctypes.c_bool],
    ),
    ("llama_vocab_is_eog", ctypes.c_bool, [ctypes.c_void_p, ctypes.c_int32]),
    ("llama_vocab_is_control", ctypes.c_bool, [ctypes.c_void_p, ctypes.c_int32]),
    ("llama_sampler_apply", None, [ctypes.c_void_p, ctypes.c_void_p]),
    ("llama_memory_seq_cp", None, [ctypes.c_void_p] + [ctypes.c_int32] * 4),
    ("llama_memory_seq_rm", ctypes.c_bool, [ctypes.c_void_p] + [ctypes.c_int32] * 3),
    ("llama_set_embeddings", None, [ctypes.c_void_p, ctypes.c_bool]),
    ("llama_sampler_free", None, [ctypes.c_void_p]),
):
    _function = getattr(fast, _name)
    _function.restype, _function.argtypes = _result, _arguments
