"""From a model's bytes to text that may be sent: whole code points only, nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

_new_decoder = codecs.getincrementaldecoder("utf-8")


class TextStream:
    """Decodes one candidate's bytes piece by piece and cuts them at the first stop string.

    What comes out does not depend on how the bytes were cut into pieces: of several stop strings, the one that is complete first
    ends the text (of two complete at the same byte, the longer one).

    Args:
        stop: strings that end the text; an empty one never matches.

    Attributes:
        matched_stop: the stop string that was found; the text before it has been returned, everything from it on is dropped.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.matched_stop: str | None = None
        self._stops = [text.encode("utf-8", "surrogatepass") for text in stop if text]
        self._first_bytes = frozenset(text[0] for text in self._stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = b""  # at most _longest - 1 bytes that may be the start of a stop string
        self._decoder = _new_decoder("replace")
        self._is_whole = True  # the decoder holds no part of a code point

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self.matched_stop is not None

    def feed(self, piece: bytes) -> str:
        """Take the next bytes; return the text that is now safe to send."""
        if not self._stops:
            return self._decode(piece)
        if self.stopped:
            return ""
        data = self._held + piece
        found = self._find(data)
        if found is not None:
            start, end = found
            self.matched_stop, self._held = data[start:end].decode("utf-8", "surrogatepass"), b""
            return self._decoder.decode(data[:start], final=True)
        keep = len(data) - self._num_held(data)
        self._held = data[keep:]
        return self._decode(data[:keep])

    def finish(self) -> str:
        """No more bytes will come: return what was held back, a cut code point as U+FFFD."""
        held, self._held = self._held, b""
        self._is_whole = True
        return self._decoder.decode(held, final=True)

    def _decode(self, data: bytes) -> str:
        if self._is_whole and data.isascii():
            return data.decode("ascii")
        text = self._decoder.decode(data)
        self._is_whole = not self._decoder.getstate()[0]
        return text

    def _find(self, data: bytes) -> tuple[int, int] | None:
        """Start and end of the stop string that ends first."""
        found = [(start + len(text), start) for text in self._stops if (start := data.find(text)) >= 0]
        return min(found)[::-1] if found else None

    def _num_held(self, data: bytes) -> int:
        """Length of the longest end of `data` that begins a stop string."""
        for start in range(max(0, len(data) - self._longest + 1), len(data)):
            if data[start] in self._first_bytes and any(text.startswith(data[start:]) for text in self._stops):
                return len(data) - start
        return 0
