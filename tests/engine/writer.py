"""Writes under a grammar, as a model would that has no opinion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llguidance import LLTokenizer
from numpy.typing import NDArray

from atlas.engine.grammar import Grammars, Matcher
from atlas.engine.runner import Model
from atlas.types import Message, Prompt
from tests import ggufs

CLOSING = frozenset(b'"}],')


class Writer:
    """Writes text or random tokens through a matcher, over the byte-level vocabulary of the tiny models."""

    def __init__(self, grammars: Grammars, tokenizer: LLTokenizer) -> None:
        self.grammars, self.tokenizer = grammars, tokenizer

    def accepts(self, grammar: str | None, text: str) -> bool:
        """Whether `text` is a whole answer."""
        assert grammar is not None
        matcher = self.grammars.start(grammar)
        for token in self.tokenizer.tokenize_str(text, parse_special=True):
            if not self.allowed(matcher)[token]:
                return False
            assert matcher.accept(token)
        return matcher.may_end and bool(self.allowed(matcher)[self.tokenizer.eos_token])

    def allowed(self, matcher: Matcher) -> NDArray[np.bool_]:
        row = np.zeros(self.tokenizer.vocab_size, dtype=np.float32)
        matcher.mask(row)
        return np.isfinite(row)

    def scribble(self, grammar: str, seed: int, *, max_tokens: int = 300) -> str | None:
        """A random answer; None if it is not whole after `max_tokens` tokens. Prefers to end."""
        rng, matcher, tokens = np.random.default_rng(seed), self.grammars.start(grammar), list[int]()
        for _ in range(max_tokens):
            ids = np.flatnonzero(self.allowed(matcher))
            if matcher.error or not ids.size:
                return None
            if self.tokenizer.eos_token in ids:
                return bytes(self.tokenizer.decode_bytes(tokens)).decode()
            closing = [token for token in ids if token in CLOSING]
            token = int(rng.choice(closing if closing and rng.random() < 0.5 else ids))
            assert matcher.accept(token)
            tokens.append(token)
        return None


@contextmanager
def tiny_writer() -> Iterator[Writer]:
    """Over the vocabulary of the tiny models."""
    model = Model(ggufs.tiny_scripted())
    tokenizer = model.vocab.grammar_tokenizer()
    grammars = Grammars(tokenizer)
    yield Writer(grammars, tokenizer)
    grammars.close()
    model.close()


def ask(**fields: Any) -> Prompt:
    return Prompt(messages=(Message(role="user", content="x"),), **fields)


def schema(value: dict[str, Any]) -> Prompt:
    return ask(json_schema=value)
