"""Exceptions that travel: by name and ancestry, so that `except` on the other side catches what it would have caught here."""

from __future__ import annotations

import builtins
import sys
from typing import Any

from atlas.sandbox.inside import faults, values

# Exceptions of the standard library that keep their own class. Nothing of pytest's: a candidate must not skip a test.
KNOWN = frozenset({
    "dataclasses:FrozenInstanceError",
    "decimal:DivisionByZero",
    "decimal:InvalidOperation",
    "json.decoder:JSONDecodeError",
    "queue:Empty",
    "queue:Full",
    "re:error",
    "statistics:StatisticsError",
    "struct:error",
})  # fmt: skip
ANCESTORS_LIMIT = 32
OWN_TEXT = "_text_of_the_candidate"
OWN_TRACE = "_trace_of_the_candidate"

Lineage = list[Any]  # [[key, [keys of its bases]], ...], the oldest first


def trace_lineage(kind: type[BaseException]) -> Lineage:
    """The classes that the candidate made, down to `kind`; those that both sides know are keys only."""
    made = [ancestor for ancestor in reversed(kind.__mro__) if not _is_known(key_of(ancestor))]
    return [[key_of(ancestor), [key_of(base) for base in ancestor.__bases__]] for ancestor in made] or [[key_of(kind), []]]


def key_of(kind: type) -> str:
    name = getattr(kind, "__qualname__", "")
    if getattr(builtins, name, None) is kind:
        return f"builtins:{name}"
    key = f"{kind.__module__}:{name}"
    is_what_it_says = getattr(sys.modules.get(kind.__module__), name, None) is kind
    return key if key not in KNOWN or is_what_it_says else f"solution:{name}"


def _is_known(key: str) -> bool:
    return key in KNOWN or key.startswith("builtins:")


def describe(error: BaseException) -> dict[str, Any]:
    """An exception for the other box."""
    return {
        "lineage": trace_lineage(type(error)),
        "args": [_try_encode(argument) for argument in error.args],
        "state": {name: _try_encode(value) for name, value in vars(error).items() if type(name) is str},
        "text": faults.text_of(error),
        "trace": faults.trace_of(error),
    }


def _try_encode(value: Any) -> values.Encoded:
    try:
        return values.encode(value)
    except BaseException:
        return f"<{type(value).__name__}>"


class Classes:
    """Exceptions of the candidate, made again on this side."""

    def __init__(self) -> None:
        self._made: dict[str, type] = {}

    def make(self, lineage: Lineage) -> type[BaseException]:
        """The class that a lineage ends in.

        Raises:
            Malformed: it is no lineage of an exception.
        """
        try:
            for key, bases in lineage[:ANCESTORS_LIMIT]:
                if not _is_known(key) and key not in self._made:
                    self._made[key] = _new_class(key, tuple(self._find(base) for base in bases))
            found = self._find(lineage[-1][0])
        except Exception as error:
            raise values.Malformed(f"no exception class: {error}"[:200]) from None
        if not issubclass(found, BaseException):
            raise values.Malformed(f"{found.__name__} is no exception")
        return found

    def _find(self, key: str) -> type:
        if key in self._made:
            return self._made[key]
        if not _is_known(key):
            raise values.Malformed(f"{key[:200]} is not known")
        module, _, name = key.partition(":")
        __import__(module)
        found = getattr(sys.modules[module], name)
        if not isinstance(found, type):
            raise values.Malformed(f"{key[:200]} is no class")
        return found

    def build(self, description: Any) -> BaseException:
        """The exception that was described.

        Raises:
            Malformed: it was none.
        """
        try:
            kind = self.make(description["lineage"])
            error = _instantiate(kind, [values.decode(argument) for argument in description["args"]])
            for name, value in description["state"].items():
                if not name.startswith("__"):
                    setattr(error, name, values.decode(value))
            setattr(error, OWN_TEXT, str(description["text"]))
            setattr(error, OWN_TRACE, str(description["trace"]))
        except Exception as unlike:
            raise values.Malformed(f"no exception: {unlike}"[:200]) from None
        return error


def _new_class(key: str, bases: tuple[type, ...]) -> type:
    return type(key.rpartition(":")[2].rpartition(".")[2], bases, {"__str__": _own_text, "__module__": "solution"})


def _own_text(error: BaseException) -> str:
    return str(getattr(error, OWN_TEXT, None) or BaseException.__str__(error))


def _instantiate(kind: type[BaseException], args: list[Any]) -> BaseException:
    try:
        return kind(*args)
    except Exception:  # its constructor takes something else than it keeps in args
        error = kind.__new__(kind)
        error.args = tuple(args)
        return error
