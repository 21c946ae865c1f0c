"""The vocabulary of the tiny models: a token per byte, Qwen's control tokens, and what a script adds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

import gguf

CONTROL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
END = "<|im_end|>"


class Vocabulary:
    """Token texts as a GGUF file holds them: bytes through GPT-2's table, specials, and what a script adds."""

    def __init__(self, *, pad_to: int = 0) -> None:
        letters = _byte_letters()
        self.tokens = [letters[byte] for byte in range(256)]
        self.types = [gguf.TokenType.NORMAL] * 256
        self._letters = letters
        self._ids = {bytes([byte]): byte for byte in range(256)}
        for text in CONTROL:
            self._add(text, text.encode(), gguf.TokenType.CONTROL)
        for text in TAGS:
            self._add(text, text.encode(), gguf.TokenType.USER_DEFINED)
        self._add("ab", b"ab", gguf.TokenType.NORMAL)  # the file must have a merge, and so its product
        self.num_basic = len(self.tokens)
        for token in range(self.num_basic, pad_to):
            self._add(f"[PAD{token}]", f"[PAD{token}]".encode(), gguf.TokenType.NORMAL)

    def id(self, text: str) -> int:
        """Id of a byte, special or piece."""
        return self._ids[text.encode()]

    def add(self, piece: str) -> int:
        """A new token for a step of a script; tags and the end have theirs already."""
        raw = piece.encode()
        if piece in (*TAGS, END):
            return self._ids[raw]
        if raw in self._ids:
            raise ValueError(f"the piece {piece!r} occurs twice, or is a single byte; cut the script in another way")
        return self._add("".join(self._letters[byte] for byte in raw), raw, gguf.TokenType.NORMAL)

    def cut(self, text: str) -> list[str]:
        """Pieces, about a word each, none of which is in the vocabulary or the text before it."""
        used = set(self._ids) - {tag.encode() for tag in TAGS}
        pieces: list[str] = []
        pending = ""
        for part in re.findall(r"</?\w+>|\s*[^\s<]+|\s+(?=<)|<|\s+", text):
            tag = part in TAGS and part.encode() not in used
            if tag and pending:
                pieces, pending = _merge_back(pieces, pending), ""
            pending += part
            if pending.encode() not in used:
                used.add(pending.encode())
                pieces.append(pending)
                pending = ""
        return _merge_back(pieces, pending) if pending else pieces

    def _add(self, token: str, raw: bytes, kind: gguf.TokenType) -> int:
        self._ids[raw] = len(self.tokens)
        self.tokens.append(token)
        self.types.append(kind)
        return self._ids[raw]


def _merge_back(pieces: Iterable[str], pending: str) -> list[str]:
    """A rest that may not stand alone joins the piece before it."""
    *before, last = pieces
    return [*before, last + pending]


def _byte_letters() -> dict[int, str]:
    """GPT-2's table: printable bytes stand for themselves, the others for the letters from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + n) for n, byte in zip(itertools.count(), others, strict=False)
    }
