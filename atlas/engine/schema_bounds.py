"""How large a JSON schema may be that a stranger sends, in every way in which size costs llguidance time, memory or stack.

Measured 2026-11, llguidance 1.9.1: 1,000 definitions that refer to each other in a chain overflow a stack of 8 MiB; an object of
10,000 properties takes 6.7 s; "a multiple of n" becomes an automaton of n states, counted in units of the last digit: 0.35 s for
30000.5, minutes and gigabytes for 123456789.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from atlas.errors import BadRequest

MAX_SCHEMA_BYTES = 64 * 1024
MAX_DEPTH = 64
MAX_REFERENCES = 200
MAX_WIDTH = 2000  # members of one object or array; also llguidance's bound on alternatives
MAX_MULTIPLE_STATES = 200_000
MAX_DIGITS = 20  # of a multipleOf, before or behind the point: more is too many states in any case


def bounded(schema: dict[str, Any], *, what: str, param: str) -> dict[str, Any]:
    """The schema itself.

    Raises:
        BadRequest: it is too large in one of the ways that cost time, memory or stack.
    """
    nodes = list(_nodes(schema))
    depth = max(depth for _, depth in nodes)
    width = max(len(node) for node, _ in nodes)
    references = sum("$ref" in node for node, _ in nodes if isinstance(node, dict))
    if depth > MAX_DEPTH:
        raise BadRequest(f"{what}: nested more than {MAX_DEPTH} deep", param=param)
    if width > MAX_WIDTH:
        raise BadRequest(f"{what}: {width} members in one object or array; at most {MAX_WIDTH}", param=param)
    if references > MAX_REFERENCES:
        raise BadRequest(f"{what}: {references} references; at most {MAX_REFERENCES}", param=param)
    size = len(json.dumps(schema))
    if size > MAX_SCHEMA_BYTES:
        raise BadRequest(f"{what}: {size} bytes of JSON; at most {MAX_SCHEMA_BYTES}", param=param)
    if _num_states(schema) > MAX_MULTIPLE_STATES:
        raise BadRequest(f"{what}: multipleOf is too large, or has too many digits, to be enforced", param=param)
    return schema


def _nodes(schema: dict[str, Any]) -> Iterator[tuple[dict[str, Any] | Sequence[Any], int]]:
    """Objects and arrays with their depth; stops descending where it is too great already."""
    stack: list[tuple[Any, int]] = [(schema, 1)]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, dict | list | tuple):
            yield value, depth
            if depth <= MAX_DEPTH:
                stack += [(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value)]


def _num_states(schema: dict[str, Any]) -> int:
    """Of the largest automaton that `multipleOf` asks for. Where schemas are combined, values meet in their common multiple."""
    found, is_combined = [], False
    for node, _ in _nodes(schema):
        if isinstance(node, dict):
            is_combined |= "allOf" in node or "$ref" in node
            found += _number(node.get("multipleOf"))
    if any(abs(value.adjusted()) > MAX_DIGITS or -_exponent(value) > MAX_DIGITS for value in found):
        return MAX_MULTIPLE_STATES + 1
    groups = [found] if is_combined else [[value] for value in found]
    return max((_common_multiple(group) for group in groups if group), default=0)


def _number(value: Any) -> list[Decimal]:
    """The value, if it is a finite number other than 0; anything else llguidance refuses by itself."""
    if isinstance(value, float):
        return [Decimal(repr(value))] if value and math.isfinite(value) else []
    return [Decimal(value)] if isinstance(value, int) and not isinstance(value, bool) and value else []


def _exponent(value: Decimal) -> int:
    return int(value.normalize().as_tuple().exponent)


def _common_multiple(values: Sequence[Decimal]) -> int:
    """In units of the last digit that any of them has behind the point."""
    digits = max(0, *(-_exponent(value) for value in values))
    return math.lcm(*(int(value.scaleb(digits)) for value in values))
