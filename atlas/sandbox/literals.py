"""Python literals from outside: parsed, never evaluated, and bounded before anything is parsed."""

from __future__ import annotations

import ast
import json
from typing import Any, NoReturn

from atlas.errors import BadRequest
from atlas.sandbox.inside.values import NotPlain, encode

LITERAL_LIMIT_CHARS = 4 * 1024 * 1024
SYNTAX_LIMIT_CHARS = 256 * 1024  # a syntax tree takes some hundred times its text
_SHOWN_CHARS = 80
_NOT_JSON = ("\\", "true", "false", "null", "NaN", "Infinity")  # what JSON reads as something else than Python does


def parse(source: str, *, what: str) -> Any:
    """The value of a literal.

    Raises:
        BadRequest: it is none, or it is too large; `what` names it.
    """
    if len(source) > LITERAL_LIMIT_CHARS:
        raise BadRequest(f"{what} has {len(source)} characters; {LITERAL_LIMIT_CHARS} are the most")
    try:
        return _parse(source, what)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise BadRequest(f"{what} is no Python literal: {_shown(source)}") from None


def encoded(source: str, *, what: str) -> tuple[Any, Any]:
    """The value of a literal, and it as JSON for a box (inside/values.py).

    Raises:
        BadRequest: it is none, or it is too large or too deep.
    """
    value = parse(source, what=what)
    try:
        return value, encode(value)
    except NotPlain as error:
        raise BadRequest(f"{what} is {error}: {_shown(source)}") from None


def _parse(source: str, what: str) -> Any:
    if not any(word in source for word in _NOT_JSON):
        try:
            return json.loads(source, parse_constant=_refuse)  # many times faster
        except ValueError:
            pass
    if len(source) > SYNTAX_LIMIT_CHARS:
        raise BadRequest(
            f"{what} has {len(source)} characters; a literal that is not JSON as well has at most {SYNTAX_LIMIT_CHARS}"
        )
    return ast.literal_eval(source)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _shown(source: str) -> str:
    return source if len(source) <= _SHOWN_CHARS else source[:_SHOWN_CHARS] + "..."
