"""The shape of an API key, and its keyed hash.

`sk-llm-` + 43 base62 characters (256 random bits) + 6 base62 characters of CRC-32 over what precedes them. The checksum lets a
typing error, or a scanner, be told from a key without asking the ledger; it protects nothing.
"""

from __future__ import annotations

import hmac
import re
import secrets
import string
import zlib
from typing import NamedTuple

import msgspec

from atlas.types import Limits

PREFIX = "sk-llm-"
RANDOM_CHARS = 43  # 62**43 > 2**256
CHECK_CHARS = 6  # 62**6 > 2**32
PRESET_MIN_CHARS = 16  # shorter than this can be guessed

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SHAPE = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{RANDOM_CHARS + CHECK_CHARS}}}")


class KeyInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What may be shown of a key; times are Unix seconds.

    Attributes:
        owner: id of the user it belongs to.
        models: ids it may name; None is all.
        allow_remote: requests with it may be sent to other machines.
        prefix: the first twelve characters of the key.
        last4: its last four.
        last_used_at: to the minute.
        is_active: False while switched off.
        rotated_to: id of the key that replaces this one.
    """

    id: str
    name: str
    owner: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None = None
    allow_remote: bool = False
    limits: Limits = Limits()
    prefix: str
    last4: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None
    is_active: bool = True
    rotated_to: str | None = None

    def is_valid(self, now_s: float) -> bool:
        """Whether the key opens anything at `now_s`, as far as the key itself is concerned: its owner may be disabled."""
        return self.is_active and self.revoked_at is None and (self.expires_at is None or now_s < self.expires_at)


class MintedKey(NamedTuple):
    """A new key: the only moment its text exists outside its owner's hands."""

    key: str
    info: KeyInfo


def new_key() -> str:
    """A fresh key from the system's random source."""
    body = PREFIX + _base62(secrets.randbits(256), RANDOM_CHARS)
    return body + _check(body)


def is_well_formed(key: str) -> bool:
    """Whether the text has a key's shape and its checksum agrees."""
    return _SHAPE.fullmatch(key) is not None and key[-CHECK_CHARS:] == _check(key[:-CHECK_CHARS])


def digest(pepper: bytes, key: str) -> bytes:
    """What is stored instead of a key (32 bytes). A fast hash suffices: a key has 256 random bits."""
    return hmac.digest(pepper, key.encode("utf-8", "surrogatepass"), "sha256")


def _check(body: str) -> str:
    return _base62(zlib.crc32(body.encode("ascii")), CHECK_CHARS)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
