"""The face every engine shows: in-process, remote and scripted alike. One contract suite holds all three to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from atlas.engine.group import Group
from atlas.types import AdapterInfo, Capabilities, Embeddings, EngineStats, Prompt


class Engine(Protocol):
    """A model that answers prompts. All methods are called from one event loop.

    Everything that is wrong with a prompt is raised by `submit`, before any token is generated: `BadRequest` and its leaves,
    `ModelNotFound`, `EngineOverloaded` when the bounded queue is full.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def is_asleep(self) -> bool:
        """Whether the next request has to wait until the model is loaded again."""

    def stats(self) -> EngineStats: ...

    async def submit(self, prompt: Prompt) -> Group:
        """Queue a prompt; generation goes on whether or not the group is read, until it ends or is cancelled."""

    async def embed(self, inputs: Sequence[str | tuple[int, ...]]) -> Embeddings:
        """Unit-length vectors of texts or token sequences.

        Raises:
            Unsupported: this engine has no embedding model.
            ContextLengthExceeded: an input is longer than the embedding model reads.
        """

    async def count_tokens(self, prompt: Prompt) -> int:
        """Tokens of the prompt as `submit` would feed them, without generating.

        What is wrong with a prompt is raised here as by `submit`, but for its length. Submitting it soon after costs no second
        rendering and tokenising, whatever its bounds, owner and priority have become.
        """

    async def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids; `special` parses control tokens such as <|im_end|> out of the text."""

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """Bytes of each token; a character may be spread over several. Raises BadRequest on an id outside the vocabulary."""

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of token ids; invalid UTF-8 becomes U+FFFD. Raises BadRequest on an id outside the vocabulary."""

    def adapters(self) -> tuple[AdapterInfo, ...]:
        """Those a prompt may name, in the order of their names."""

    async def load_adapter(self, name: str, path: Path, *, scale: float = 1.0) -> AdapterInfo:
        """Read a LoRA file and give it a name, while answers are written. One that had the name leaves as by `drop_adapter`.

        Raises:
            BadRequest: the name or the scale cannot be one.
            ModelFileError: the file is missing, damaged, or does not fit the model; the message says what to do.
            Unsupported: this engine has no adapters.
        """

    async def drop_adapter(self, name: str) -> None:
        """No prompt can name it from now on; returns when those that did are answered, and its memory is free.

        Raises:
            ModelNotFound: none has this name.
        """

    async def close(self) -> None:
        """Abort what runs, free the model. Idempotent."""
