"""Compares values as they came out of a box with what was expected: in their encoding (inside/values.py), never as objects.

Nothing here builds a set or a dict of what a candidate sent: a few megabytes of numbers with the same hash would stop the pool.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from atlas.sandbox.inside.values import DEPTH_LIMIT, Malformed
from atlas.types import Compare

if TYPE_CHECKING:
    from atlas.sandbox.inside.values import Encoded

_LIKE_DICT = ("dict", "Counter", "OrderedDict", "defaultdict")  # a literal can only expect the first
_UNORDERED = ("set", "frozenset")
_ORDERED = ("tuple", "deque")
_PARTED = frozenset({"complex", "range", "Fraction", "timedelta"})
_TEXTS = frozenset({"str", "int", "float", "bytes", "bytearray", "Decimal", "datetime", "time", "date"})
_ATOMS = _PARTED | _TEXTS
_SCALARS = frozenset({bool, int, float, str, type(None)})
_NOT_FINITE = ("nan", "inf", "-inf")
_HEX_DIGITS_SHOWN = 40

Normal = tuple[Any, ...]


def matches(returned: Encoded, expected: Encoded, *, how: Compare, tolerance: float) -> bool:
    """Whether a value is what was expected.

    Args:
        returned: as the box sent it.
        expected: as `values.encode` made it.
        how: see `types.Case`.
        tolerance: of `approx`, relative or absolute.

    Raises:
        Malformed: what was returned is the encoding of no value.
    """
    if type(returned) in _SCALARS and type(returned) is type(expected) and returned == expected:
        return True  # however they are compared; most are
    exactly = _normal(returned, 0, "exact")  # also proves that it is a value
    if how == "approx":
        return _is_close(returned, expected, tolerance)
    if how == "json":
        return _normal(returned, 0, "json") == _normal(expected, 0, "json")
    return exactly == _normal(expected, 0, "exact")


def _normal(encoded: Encoded, depth: int, how: Literal["exact", "json"]) -> Normal:
    """A form in which equal values are equal, and different ones are not."""
    kind = type(encoded)
    if kind is int or kind is float:
        return _number(encoded, how)
    if encoded is None or kind is bool or kind is str:
        return kind.__name__, encoded
    if depth > DEPTH_LIMIT:
        raise Malformed(f"nested deeper than {DEPTH_LIMIT}")
    if kind is list:
        return "list", tuple([_normal(item, depth + 1, how) for item in encoded])
    tag, content = _tagged(encoded)
    return _atom(tag, content, how) if tag in _ATOMS else _container(tag, content, depth, how)


def _container(tag: str, content: Any, depth: int, how: Literal["exact", "json"]) -> Normal:
    if type(content) is not list:
        raise Malformed(f"a {tag} of no list")
    if tag in _LIKE_DICT:
        return "dict", tuple(sorted(_pairs(content, depth + 1, how), key=repr))
    items = [_normal(item, depth + 1, how) for item in content]
    if tag in _UNORDERED:
        return tag, tuple(sorted(items, key=repr))
    return "list" if how == "json" else tag, tuple(items)


def _tagged(encoded: Encoded) -> tuple[str, Any]:
    if type(encoded) is not dict or len(encoded) != 1:
        raise Malformed(f"a {type(encoded).__name__} that has no meaning")
    ((tag, content),) = encoded.items()
    if tag not in _ATOMS and tag not in (*_LIKE_DICT, *_UNORDERED, *_ORDERED):
        raise Malformed(f"no value is called {tag[:_HEX_DIGITS_SHOWN]}")
    return tag, content


def _number(number: float, how: Literal["exact", "json"]) -> Normal:
    if how == "json":
        is_whole = type(number) is float and number.is_integer()
        return "number", int(number) if is_whole else number
    return type(number).__name__, number + 0  # -0.0 is 0.0


def _atom(tag: str, content: Any, how: Literal["exact", "json"]) -> Normal:
    if tag in _PARTED:
        if type(content) is not list:
            raise Malformed(f"a {tag} of no list")
        return tag, tuple([_normal(part, DEPTH_LIMIT, how) for part in content])
    if type(content) is not str or (tag == "float" and content not in _NOT_FINITE):
        raise Malformed(f"a {tag} of something else")
    if tag == "int":
        try:
            return _number(int(content, 16), how)
        except ValueError:
            raise Malformed("an int that is no number") from None
    return ("number" if how == "json" and tag == "float" else tag), content


def _pairs(content: list[Encoded], depth: int, how: Literal["exact", "json"]) -> Iterator[Normal]:
    for pair in content:
        if type(pair) is not list or len(pair) != 2:
            raise Malformed("a dict of something else than pairs")
        key = _json_key(pair[0]) if how == "json" else pair[0]
        yield _normal(key, depth, how), _normal(pair[1], depth, how)


def _json_key(key: Encoded) -> Encoded:
    """A key as JSON writes it."""
    return json.dumps(key) if key is None or type(key) in (bool, int, float) else key


def _is_close(returned: Encoded, expected: Encoded, tolerance: float) -> bool:
    """As exact, but for numbers. What was returned is known to be a value."""
    left, right = _as_number(returned), _as_number(expected)
    if left is not None and right is not None:
        return _are_close(left, right, tolerance)
    if type(returned) is list and type(expected) is list:
        return _all_close(returned, expected, tolerance)
    if type(returned) is dict and type(expected) is dict:
        (tag, content), (wanted, model) = *returned.items(), *expected.items()
        if tag in _LIKE_DICT and wanted in _LIKE_DICT:
            return _dicts_are_close(content, model, tolerance)
        if tag == wanted and tag in _ORDERED:
            return _all_close(content, model, tolerance)
        if tag == wanted and tag in _UNORDERED:
            return _all_close(sorted(content, key=_order), sorted(model, key=_order), tolerance)
        if tag == wanted == "complex":
            return _all_close(content, model, tolerance)
    return _normal(returned, 0, "exact") == _normal(expected, 0, "exact")


def _as_number(encoded: Encoded) -> float | None:
    kind = type(encoded)
    if kind is int or kind is float:
        return encoded  # type: ignore[no-any-return]
    if kind is dict and "int" in encoded:
        return int(encoded["int"], 16)
    return float(encoded["float"]) if kind is dict and "float" in encoded else None


def _are_close(left: float, right: float, tolerance: float) -> bool:
    if left == right or (left != left and right != right):
        return True
    try:
        return math.isclose(left, right, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # integers beyond any float
        return False


def _all_close(returned: list[Encoded], expected: list[Encoded], tolerance: float) -> bool:
    return len(returned) == len(expected) and all(
        _is_close(left, right, tolerance) for left, right in zip(returned, expected, strict=True)
    )


def _dicts_are_close(returned: list[Encoded], expected: list[Encoded], tolerance: float) -> bool:
    if len(returned) != len(expected):
        return False
    pairs = zip(_by_key(returned), _by_key(expected), strict=True)
    return all(left[0] == right[0] and _is_close(left[1], right[1], tolerance) for left, right in pairs)


def _by_key(content: list[Encoded]) -> list[tuple[str, Encoded]]:
    return sorted(((repr(_normal(key, 0, "exact")), value) for key, value in content), key=lambda pair: pair[0])


def _order(encoded: Encoded) -> tuple[int, float, str]:
    number = _as_number(encoded)
    return (1, 0.0, repr(encoded)) if number is None or number != number else (0, number, "")


def show(encoded: Encoded, limit: int) -> str:
    """An encoded value as Python would write it, cut off at a length."""
    if type(encoded) in _SCALARS:
        text = repr(encoded)
        return text if len(text) <= limit else text[:limit] + "..."
    parts: list[str] = []
    room = limit
    for part in _written(encoded, 0):
        parts.append(part)
        room -= len(part)
        if room < 0:
            return "".join(parts)[:limit] + "..."
    return "".join(parts)


def _written(encoded: Encoded, depth: int) -> Iterator[str]:
    if type(encoded) is list and depth <= DEPTH_LIMIT:
        yield from _joined("[", encoded, "]", depth)
    elif type(encoded) is dict and len(encoded) == 1 and depth <= DEPTH_LIMIT:
        ((tag, content),) = encoded.items()
        yield from _written_tag(tag, content, depth)
    else:
        yield repr(encoded)


def _written_tag(tag: str, content: Any, depth: int) -> Iterator[str]:
    if tag in _LIKE_DICT and type(content) is list:
        opening, closing = ("{", "}") if tag == "dict" else (tag + "({", "})")
        yield from _joined(opening, content, closing, depth, _written_pair)
    elif tag == "tuple" and type(content) is list:
        yield from _joined("(", content, ",)" if len(content) == 1 else ")", depth)
    elif tag in (*_UNORDERED, *_ORDERED) and type(content) is list:
        yield from _joined(*_brackets(tag, content), depth=depth)
    else:
        yield _written_atom(tag, content)


def _brackets(tag: str, content: list[Encoded]) -> tuple[str, list[Encoded], str]:
    if tag == "deque":
        return "deque([", content, "])"
    if not content:
        return f"{tag}(", content, ")"
    return ("{", content, "}") if tag == "set" else ("frozenset({", content, "})")


def _written_atom(tag: str, content: Any) -> str:
    if tag == "float":
        return str(content)
    if tag == "int" and type(content) is str and len(content) <= _HEX_DIGITS_SHOWN:
        with suppress(ValueError):
            return str(int(content, 16))
    if tag == "bytes" and type(content) is str and content.isalnum() and len(content) % 2 == 0:
        try:
            return repr(bytes.fromhex(content))
        except ValueError:
            pass
    return f"{tag}({content})"


def _joined(
    opening: str, items: list[Encoded], closing: str, depth: int, write: Callable[[Encoded, int], Iterator[str]] = _written
) -> Iterator[str]:
    yield opening
    for number, item in enumerate(items):
        if number:
            yield ", "
        yield from write(item, depth + 1)
    yield closing


def _written_pair(pair: Encoded, depth: int) -> Iterator[str]:
    if type(pair) is list and len(pair) == 2:
        yield from _written(pair[0], depth)
        yield ": "
        yield from _written(pair[1], depth)
    else:
        yield repr(pair)
