"""OpenAI's four forms of `prompt` and `input`: a text, a list of texts, a token list, a list of token lists."""

from __future__ import annotations

from atlas.errors import BadRequest
from atlas.gateway import text_wire

Input = str | tuple[int, ...]


def to_inputs(given: text_wire.Inputs, param: str) -> list[Input]:
    """One entry per text or token list, none of them empty.

    Raises:
        BadRequest: forms are mixed, or an entry is empty.
    """
    entries: list[Input] = [given] if isinstance(given, str) else _entries(given, param)
    for entry in entries:
        if not entry:
            raise BadRequest(f"{param}: an entry is empty", param=param)
    return entries


def _entries(given: list[str | int | list[int]], param: str) -> list[Input]:
    texts = [entry for entry in given if isinstance(entry, str)]
    tokens = [entry for entry in given if isinstance(entry, int)]
    lists = [tuple(entry) for entry in given if isinstance(entry, list)]
    if len(tokens) == len(given):
        return [tuple(tokens)]
    if len(given) in (len(texts), len(lists)):
        return [*texts, *lists]
    raise BadRequest(f"{param}: texts, tokens and token lists cannot be mixed", param=param)
