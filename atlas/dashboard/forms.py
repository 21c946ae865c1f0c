"""Reading a form that was posted, and refusing one that was not sent by our own page."""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from atlas.dashboard.view import HTTPRequest, View
from atlas.errors import BadRequest, Forbidden
from atlas.types import Limits

FIELDS_MAX = 200
DAY_S = 86400.0
LIFETIMES_S: Mapping[str, float] = {"1d": DAY_S, "7d": 7 * DAY_S, "30d": 30 * DAY_S, "90d": 90 * DAY_S, "365d": 365 * DAY_S}
LIMIT_NAMES = ("requests_per_minute", "tokens_per_minute", "concurrency", "tokens_per_day", "tokens_per_month")
COST_NAMES = ("cost_per_day", "cost_per_month")


class Form:
    """Fields of a posted form. What is wrong in one raises BadRequest with the field's name as `param`."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self._pairs = pairs

    def text(self, name: str, *, max_length: int = 200) -> str:
        """The field without surrounding blanks; empty if it was not sent."""
        value = self.raw(name).strip()
        if len(value) > max_length:
            raise BadRequest(f"{_words(name)} is longer than {max_length} characters", param=name)
        return value

    def raw(self, name: str) -> str:
        """The field as it was typed: for passwords."""
        return next((value for key, value in self._pairs if key == name), "")

    def all(self, name: str) -> tuple[str, ...]:
        """Every value of a field that may be sent several times."""
        return tuple(value for key, value in self._pairs if key == name)

    def number(self, name: str) -> int | None:
        """A whole number from 1; None if the field is empty."""
        value = self.text(name, max_length=20).replace(",", "").replace(" ", "")
        if not value:
            return None
        if not (value.isascii() and value.isdigit() and int(value) > 0):
            raise BadRequest(f"{_words(name)} must be a whole number above 0, or empty for no limit", param=name)
        return int(value)

    def amount(self, name: str) -> int | None:
        """An amount of money, in millionths; None if the field is empty."""
        value = self.text(name, max_length=20)
        if not value:
            return None
        try:
            amount = float(value)
        except ValueError:
            amount = math.nan
        if not 0 < amount < 1e9:
            raise BadRequest(f"{_words(name)} must be an amount above 0, or empty for no limit", param=name)
        return max(1, round(amount * 1e6))

    def limits(self) -> Limits:
        counts = {name: self.number(name) for name in LIMIT_NAMES}
        return Limits(**counts, **{name: self.amount(name) for name in COST_NAMES})

    def lifetime(self, name: str) -> float | None:
        """Unix seconds when something ends, of a choice such as "30d"; None for never."""
        choice = self.text(name)
        if choice in ("", "never"):
            return None
        if choice not in LIFETIMES_S:
            raise BadRequest(f"{_words(name)} must be one of never, {', '.join(LIFETIMES_S)}", param=name)
        return time.time() + LIFETIMES_S[choice]

    def choice(self, name: str, allowed: Sequence[str]) -> str:
        value = self.text(name)
        if value not in allowed:
            raise BadRequest(f"{_words(name)} must be one of {', '.join(allowed)}", param=name)
        return value


async def read_form(request: HTTPRequest, view: View) -> Form:
    """The form, once its token proves that the page it comes from was made for this session.

    Raises:
        Forbidden: the token is missing or another's.
    """
    form = await read_public_form(request)
    sent = request.headers.get("x-csrf-token") or form.raw("csrf")
    if not hmac.compare_digest(sent.encode(), view.csrf.encode()):
        raise Forbidden("this form was made for another session, or has been open too long; load the page again and repeat")
    return form


async def read_public_form(request: HTTPRequest) -> Form:
    """A form of a page for which nobody need be signed in; the gate has checked that it comes from this server's own page."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise BadRequest("send the form as application/x-www-form-urlencoded")
    try:
        text = (await request.body()).decode()
        return Form(
            parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=FIELDS_MAX, errors="strict")
        )
    except ValueError:
        raise BadRequest("the form cannot be read: too many fields, or not UTF-8") from None


def limit_values(limits: Limits) -> dict[str, Any]:
    """What stands in the fields of a limits form."""
    counts: dict[str, Any] = {name: getattr(limits, name) for name in LIMIT_NAMES}
    costs = {name: getattr(limits, name) for name in COST_NAMES}
    return counts | {name: None if value is None else f"{value / 1e6:g}" for name, value in costs.items()}


def _words(name: str) -> str:
    return name.replace("_", " ")
