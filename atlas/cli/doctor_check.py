"""One thing that `atlas doctor` looked at."""

from __future__ import annotations

from typing import Literal

import msgspec


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """`warn`: works, but not as it could; `fail`: `atlas serve` would not work, or not safely."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
