"""A model of llama.cpp, its vocabulary, and a context with unified KV cells.

Every call into a context comes from the one thread that owns it; `Vocab` is read-only and may be used from any thread. The C side
aborts the process on what it calls a programming error, so whatever goes in is checked here or by the caller named.
"""

from __future__ import annotations

import ctypes
import enum
import mmap
import threading
from collections.abc import Sequence as Seq
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas.engine.binding import c, fast, get_embeddings, get_logits
from atlas.engine.hardware import has_unsafe_amx
from atlas.errors import EngineFailed, ModelFileError

Tokens = NDArray[np.signedinteger[Any]]  # int32 where C reads it; numpy's own index type where it only indexes
Rows = NDArray[np.float32]
State = NDArray[np.uint8]  # one sequence's cells, as llama.cpp writes them

MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}  # enum llama_flash_attn_type
# enum llama_ftype: K- and I-quants, whose products llama.cpp computes in blocks of 256 weights
_K_QUANTS = frozenset(range(c.LLAMA_FTYPE_MOSTLY_Q2_K, c.LLAMA_FTYPE_MOSTLY_IQ1_M + 1)) - {c.LLAMA_FTYPE_MOSTLY_IQ4_NL}
_quiet = c.llama_log_callback(lambda _level, _text, _user: None)  # must outlive every call that may log


class DecodeResult(enum.Enum):
    """What became of a batch: computed, refused for want of cells (state unchanged), or cut short by `abort`."""

    DONE = 0
    FULL = 1
    ABORTED = 2


_RESULTS = {result.value: result for result in DecodeResult}


def supports_gpu() -> bool:
    """Whether this build of llama.cpp can use a GPU at all."""
    return bool(c.llama_supports_gpu_offload())


class Vocab:
    """Token ids and their bytes. Thread-safe: reads only."""

    def __init__(self, model: Any) -> None:
        self._vocab = c.llama_model_get_vocab(model)
        self.size: int = c.llama_vocab_n_tokens(self._vocab)
        self.eos: int = c.llama_vocab_eos(self._vocab)
        self.bos: int = c.llama_vocab_bos(self._vocab)
        self.adds_bos = bool(c.llama_vocab_get_add_bos(self._vocab))
        self.fim = tuple(int(get(self._vocab)) for get in (c.llama_vocab_fim_pre, c.llama_vocab_fim_suf, c.llama_vocab_fim_mid))
        self.eog = frozenset(token for token in range(self.size) if fast.llama_vocab_is_eog(self._vocab, token))
        self._pieces: list[bytes | None] = [None] * self.size
        self._shown = {self.token(tag) for tag in ("<think>", "</think>", "<tool_call>", "</tool_call>")} - {None}

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Ids of a text, nothing added at either end; with `special`, control tokens written out in it are parsed."""
        raw = text.encode("utf-8", "surrogatepass")
        room = len(raw) + 8
        buffer = (ctypes.c_int32 * room)()
        count = c.llama_tokenize(self._vocab, raw, len(raw), buffer, room, False, special)
        if count < 0:
            raise EngineFailed(f"tokenizer wanted {-count} tokens for {len(raw)} bytes")
        return list(buffer[:count])

    def piece(self, token: int) -> bytes:
        """Bytes a token adds to an answer; control tokens add none, think and tool-call tags always show."""
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self.raw_piece(token, special=token in self._shown)
        return piece

    def raw_piece(self, token: int, *, special: bool) -> bytes:
        """Bytes of a token, control tokens written out if `special`."""
        for size in (128, 65536):
            buffer = ctypes.create_string_buffer(size)
            count = fast.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
        raise EngineFailed(f"token {token} is longer than 64 KiB")

    def token(self, text: str) -> int | None:
        """Id of a special token written out, None if the vocabulary has no such single token."""
        ids = self.tokenize(text, special=True)
        return ids[0] if len(ids) == 1 else None

    def control_texts(self) -> list[str]:
        """How every control token is spelled."""
        control = (token for token in range(self.size) if fast.llama_vocab_is_control(self._vocab, token))
        return [self.raw_piece(token, special=True).decode("utf-8", "replace") for token in control]

    def grammar_tokenizer(self) -> Any:
        """An `llguidance.LLTokenizer` over this vocabulary; about 1 s for 150,000 tokens, so build it once."""
        from llguidance.llamacpp import lltokenizer_from_vocab  # costs start-up time, few requests need it

        return lltokenizer_from_vocab(self._vocab)


class Model:
    """Weights of one GGUF file, with what its header says.

    Raises:
        ModelFileError: the file is missing, damaged, or of an architecture this build does not know.
    """

    def __init__(self, path: Path, *, gpu_layers: int = -1) -> None:
        if not path.is_file():
            raise ModelFileError(f"model file {path} does not exist")
        c.llama_log_set(_quiet, None)
        c.llama_backend_init()
        params = c.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.use_extra_bufts = not has_unsafe_amx()  # AMX is one of these kinds of buffers
        self.handle = c.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise ModelFileError(f"{path} cannot be loaded: damaged, not a GGUF, or an architecture llama.cpp does not know")
        self.path = path
        self.adapters_lock = threading.Lock()  # over the model's list of them, which every new graph is sized by
        self.vocab = Vocab(self.handle)
        self.architecture = self.meta("general.architecture") or "unknown"
        self.width: int = c.llama_model_n_embd(self.handle)
        self.train_context_tokens: int = c.llama_model_n_ctx_train(self.handle)
        self.size_bytes: int = c.llama_model_size(self.handle)
        self.num_parameters: int = c.llama_model_n_params(self.handle)
        self.has_k_quants = c.llama_model_ftype(self.handle) & ~c.LLAMA_FTYPE_GUESSED in _K_QUANTS
        self.can_drop_tails = not (c.llama_model_is_recurrent(self.handle) or c.llama_model_is_hybrid(self.handle))
        template = c.llama_model_chat_template(self.handle, None)
        self.chat_template = template.decode("utf-8", "replace") if template else None

    def meta(self, key: str) -> str | None:
        """A value of the GGUF header as text; None if absent."""
        buffer = ctypes.create_string_buffer(4096)
        count = c.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if count >= 0 else None

    def close(self) -> None:
        if self.handle:
            c.llama_model_free(self.handle)
            self.handle = None


class Batch:
    """Arrays of one llama_batch, filled by numpy: one row per token, each of one sequence or of several that are alike so far."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tokens = np.zeros(capacity, np.int32)
        self.positions = np.zeros(capacity, np.int32)
        self.outputs = np.zeros(capacity, np.int8)
        most_ids = capacity + MAX_SEQUENCES  # a row has several sequences only if they are in no other
        self._seq_ids = np.zeros(most_ids, np.int32)  # of the rows behind each other
        start = self._seq_ids.ctypes.data
        self._addresses = np.arange(start, start + 4 * most_ids, 4, dtype=np.uintp)
        self._num_of = np.ones(capacity, np.int32)  # n_seq_id
        self._ids_of = np.zeros(capacity, np.uintp)  # seq_id[i] -> the first of its ids
        self._struct = c.llama_batch(
            0,
            self.tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            None,
            self.positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            self._num_of.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            ctypes.cast(self._ids_of.ctypes.data, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            self.outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        self.num_rows = self.num_outputs = self._num_ids = 0
        self._layout: Seq[Seq[int]] = ()  # `rows` that `add_each` has begun this batch with, or the one before it

    def clear(self) -> None:
        self.num_rows = self.num_outputs = self._num_ids = 0

    def add(self, seq_ids: Seq[int], start: int, tokens: Seq[int] | Tokens, *, output: bool) -> None:
        """Rows for consecutive tokens of a sequence, or of several at once; with `output`, the last one yields logits.

        Raises:
            ValueError: more rows than the batch holds (the caller's arithmetic is wrong; C would abort).
        """
        first, last = self.num_rows, self.num_rows + len(tokens)
        if last > self.capacity:
            raise ValueError(f"{last} rows in a batch of {self.capacity}")
        self._layout = ()
        self.tokens[first:last] = tokens
        self.positions[first:last] = (
            range(start, start + len(tokens)) if len(tokens) < 8 else np.arange(start, start + len(tokens))
        )
        self._ids_of[first:last] = self._addresses[self._num_ids]
        self._num_of[first:last] = len(seq_ids)
        self._seq_ids[self._num_ids : self._num_ids + len(seq_ids)] = seq_ids
        self._num_ids += len(seq_ids)
        self.outputs[first:last] = 0
        if output:
            self.outputs[last - 1] = 1
            self.num_outputs += 1
        self.num_rows = last

    def add_each(self, rows: Seq[Seq[int]], positions: Seq[int], tokens: Seq[int]) -> None:
        """One row each, of the sequences `rows[i]`, all of them outputs. Raises as `add`."""
        first, last = self.num_rows, self.num_rows + len(tokens)
        if last > self.capacity:
            raise ValueError(f"{last} rows in a batch of {self.capacity}")
        self.tokens[first:last], self.positions[first:last] = tokens, positions
        if first or rows != self._layout:  # else all of this stands there from the last step
            lengths = [len(row) for row in rows]
            self._num_of[first:last] = lengths
            self._ids_of[first:last] = self._addresses[list(accumulate(lengths[:-1], initial=self._num_ids))]
            self._seq_ids[self._num_ids : self._num_ids + sum(lengths)] = [seq_id for row in rows for seq_id in row]
            self.outputs[first:last] = 1
            self._layout = () if first else rows
        self._num_ids += sum(map(len, rows))
        self.num_outputs += len(tokens)
        self.num_rows = last

    def as_struct(self) -> Any:
        self._struct.n_tokens = self.num_rows
        return self._struct


class Runner:
    """A llama context with unified KV cells: batch in, logits out. Owned by one thread.

    Args:
        context_tokens: KV cells, shared by all sequences.
        num_sequences: sequence ids 0..n-1 (at most 256).
        batch_tokens: rows one decode may take.
        num_outputs: rows of one decode whose logits are wanted, at most; `num_sequences` in any case.
        threads: CPU threads.
        flash_attention: auto, on or off.
    """

    def __init__(
        self,
        model: Model,
        *,
        context_tokens: int,
        num_sequences: int,
        batch_tokens: int,
        threads: int,
        num_outputs: int = 0,
        flash_attention: str = "auto",
    ) -> None:
        params = c.llama_context_default_params()
        params.n_ctx = context_tokens
        params.n_batch = params.n_ubatch = batch_tokens
        params.n_seq_max = num_sequences
        params.n_outputs_max = max(num_outputs, num_sequences)  # not less than n_seq_max, else GGML_ASSERT
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        params.no_perf = True
        params.flash_attn_type = _FLASH_ATTENTION[flash_attention]
        params.pooling_type = c.LLAMA_POOLING_TYPE_NONE
        self._handle = c.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise ModelFileError(
                f"no context of {context_tokens} tokens for {model.path}: not enough memory; lower engine.context_tokens"
            )
        self._memory = c.llama_get_memory(self._handle)
        # ggml asks after every node of the graph, hundreds of times a step. A Python callback would take the GIL each time, so
        # the question is put to libc: strlen(b"") is 0, go on; strlen(b"x") is 1, stop.
        self._abort_flag = ctypes.create_string_buffer(2)
        strlen = ctypes.cast(ctypes.CDLL(None).strlen, c.ggml_abort_callback)
        c.llama_set_abort_callback(self._handle, strlen, ctypes.addressof(self._abort_flag))
        self._features_on = False
        self._num_outputs = 0
        self._logits, self._states = (_Output(params.n_outputs_max, width) for width in (model.vocab.size, model.width))
        self.model = model
        self.has_flash_attention = flash_attention == "on"
        self.vocab_size = model.vocab.size
        self.width = model.width
        self.num_sequences = num_sequences
        self.context_tokens: int = c.llama_n_ctx(self._handle)
        self.batch = Batch(batch_tokens)

    def decode(self, *, features: bool = False) -> DecodeResult:
        """Run the rows in `batch`. With `features` every row must be an output: see `states`.

        Raises:
            EngineFailed: llama.cpp reported an error; the cells of the sequences in the batch are undefined.
        """
        batch = self.batch
        if features and batch.num_outputs != batch.num_rows:
            raise ValueError("hidden states need a batch without prefill rows: C aborts otherwise")
        if features != self._features_on:
            fast.llama_set_embeddings(self._handle, features)
            self._features_on = features
        code = c.llama_decode(self._handle, batch.as_struct())
        self._num_outputs = batch.num_outputs
        if code not in _RESULTS:
            raise EngineFailed(f"llama_decode failed with {code} on {batch.num_rows} rows")
        return _RESULTS[code]

    def attach(self, adapter: Any, scale: float) -> None:
        """Compute with this adapter from the next decode on, which plans its graph anew; None for the model as it is."""
        if adapter is None:
            c.llama_set_adapters_lora(self._handle, None, 0, None)
        else:
            c.llama_set_adapters_lora(self._handle, (c.llama_adapter_lora_p_ctypes * 1)(adapter), 1, (ctypes.c_float * 1)(scale))

    def logits(self) -> Rows:
        """Logits of the last decode's outputs in batch order: (num_outputs, vocab_size), valid and writable until the next."""
        return self._logits.rows(get_logits(self._handle), self._num_outputs)

    def states(self) -> Rows:
        """Hidden states after the output norm: (num_outputs, width), of a decode with `features`; valid until the next."""
        return self._states.rows(get_embeddings(self._handle), self._num_outputs)

    def share(self, source: int, target: int, length: int) -> None:
        """Let sequence `target` use the first `length` cells of `source`: no copy in unified KV."""
        fast.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def drop(self, seq_id: int, start: int = 0) -> None:
        """Take sequence `seq_id` off the cells from position `start` on; cells nobody holds become free."""
        if not fast.llama_memory_seq_rm(self._memory, seq_id, start, -1):
            raise EngineFailed(f"sequence {seq_id} cannot be cut at {start}")

    def save(self, seq_id: int) -> State:
        """A copy of all cells of a sequence, (bytes,)."""
        state = _in_small_pages(c.llama_state_seq_get_size(self._handle, seq_id))
        size = c.llama_state_seq_get_data(self._handle, _bytes_of(state), state.nbytes, seq_id)
        if size != state.nbytes:
            raise EngineFailed(f"llama.cpp saved {size} of {state.nbytes} bytes of sequence {seq_id}")
        return state

    def load(self, seq_id: int, state: State) -> bool:
        """Give an empty sequence the cells that were saved; False, and nothing has changed, if there is no room."""
        return bool(c.llama_state_seq_set_data(self._handle, _bytes_of(state), state.nbytes, seq_id))

    def abort(self) -> None:
        """Cut a decode in progress short (CPU), from any thread; this runner is of no use afterwards."""
        self._abort_flag.raw = b"x\0"

    def close(self) -> None:
        if self._handle:
            c.llama_free(self._handle)
            self._handle = None


class _Output:
    """A buffer that llama.cpp writes rows to, as numpy sees it; making that view anew takes 20 us, so it is kept."""

    def __init__(self, capacity: int, width: int) -> None:
        self._shape = capacity, width
        self._address = 0
        self._view: Rows = np.empty((0, width), np.float32)

    def rows(self, address: int, count: int) -> Rows:
        """The first `count` rows, (count, width), at `address`."""
        if address != self._address:
            pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
            self._address, self._view = address, np.ctypeslib.as_array(pointer, shape=self._shape)
        return self._view[:count]


def _in_small_pages(num_bytes: int) -> State:
    """Memory from the kernel, (bytes,). Numpy asks for huge pages, which a virtual machine may have to get from its host first:
    a copy of 5.4 MB took 2 to 13 ms with them, 3.0 without (docs/log.md).
    """
    return np.frombuffer(mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)


def _bytes_of(state: State) -> Any:
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
