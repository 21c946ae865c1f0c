"""Plain values as JSON, and back: what travels between boxes, and from a box to the pool. No pickle, ever.

None, bool, str, int, float and list are themselves; everything else is an object of one entry, `{tag: content}`. Types are exact:
an instance of a subclass does not travel, because what it does when it is compared is the candidate's choice.

Between two boxes containers keep their identity (`Track`): both sides number them in the order they appear, so that a list
that comes back is the list that was sent, and what was changed in it is changed in the original.

Imported by fresh interpreters: types that the candidate would have to import itself are looked for only where it has (frames.py).
"""

from __future__ import annotations

import math
import sys
from _operator import is_

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime, time
    from typing import Any

    Encoded = Any  # JSON
    Track = list[Any]  # containers that can be changed, in the order both sides met them

DEPTH_LIMIT = 60
SIZE_LIMIT_BYTES = 4 * 1024 * 1024
_SMALL_INT = 1 << 63
_ELEMENT_BYTES = 2  # least a value takes
_CONTAINER_BYTES = 8  # and least a container takes besides: the pool reads a bounded number of them (supervision.py)
_UNKNOWN_TEXT = 60


class NotPlain(TypeError):
    """This value does not travel; the message says which and why."""


class Malformed(ValueError):
    """This is not what `encode` makes of any value."""


def encode(value: Any, track: Track | None = None, *, extra: Callable[[Any], Encoded | None] | None = None) -> Encoded:
    """A value as JSON.

    Args:
        value: what is to travel.
        track: containers met so far; they are sent as references, and new ones are added.
        extra: encodes what is not plain, or answers None.

    Raises:
        NotPlain: something in it is not plain, nested deeper than DEPTH_LIMIT, or larger than SIZE_LIMIT_BYTES.
    """
    return _Encoder(track, extra).encode(value, 0)


def encode_content(container: Any, track: Track) -> Encoded:
    """A tracked container itself, not a reference to it.

    Raises:
        NotPlain: as `encode`.
    """
    track.append(_Stand())  # the other side meets a container when it decodes this
    return _Encoder(track, None).container(container, 0)


def decode(encoded: Encoded, track: Track | None = None, *, extra: Callable[[str, Any], Any] | None = None) -> Any:
    """The value that `encode` was given.

    Args:
        encoded: what arrived; nobody vouches for it.
        track: as it was on the other side before it encoded.
        extra: decodes tags that are not of a plain value; whatever it raises for one it does not know is Malformed.

    Raises:
        Malformed: no value is encoded so.
    """
    try:
        return _Decoder(track, extra).decode(encoded, 0)
    except Malformed:
        raise
    except Exception as error:  # constructors of eight types, given anything at all
        raise Malformed(f"{type(error).__name__}: {error}"[:200]) from None


class _Stand:
    """Takes a number that belongs to nothing here."""


class _Encoder:
    def __init__(self, track: Track | None, extra: Callable[[Any], Encoded | None] | None) -> None:
        self._track = track
        self._known = {id(container): number for number, container in enumerate(track or ())}
        self._extra = extra
        self._room_bytes = SIZE_LIMIT_BYTES

    def encode(self, value: Any, depth: int) -> Encoded:
        kind = type(value)
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            self._take(len(value) if kind is str else _ELEMENT_BYTES)
            return scalar(value)
        if self._track is not None and _tag_of(kind) in _MUTABLE:
            if id(value) in self._known:
                return {"ref": self._known[id(value)]}
            self._known[id(value)] = len(self._track)
            self._track.append(value)
        return self.container(value, depth)

    def container(self, value: Any, depth: int) -> Encoded:
        kind = type(value)
        if depth >= DEPTH_LIMIT:
            raise NotPlain(f"a value nested deeper than {DEPTH_LIMIT}")
        self._take(_CONTAINER_BYTES)
        tag = _tag_of(kind)
        if tag == "list":
            return self._sequence(value, depth)
        if tag in _SEQUENCES:
            return {tag: self._sequence(value, depth)}
        if tag in _MAPPINGS:
            self._take(_ELEMENT_BYTES * len(value))
            inner = depth + 1
            return {tag: [[self.encode(key, inner), self.encode(item, inner)] for key, item in value.items()]}
        if tag in _ATOMS:
            content = _ATOMS[tag](value)
            self._take(len(content) if isinstance(content, str) else _ELEMENT_BYTES)
            return {tag: content}
        encoded = self._extra(value) if self._extra else None
        if encoded is None:
            raise NotPlain(f"a value of type {_name_of(kind)}")
        return encoded

    def _sequence(self, value: Iterable[Any], depth: int) -> list[Encoded]:
        items = list(value)
        self._take(_ELEMENT_BYTES * len(items))
        kinds = set(map(type, items))
        if len(kinds) == 1 and _is_bare(kinds.pop(), items):
            if items and type(items[0]) is str:
                self._take(sum(map(len, items)))
            return items
        return [self.encode(item, depth + 1) for item in items]

    def _take(self, size: int) -> None:
        self._room_bytes -= size
        if self._room_bytes < 0:
            raise NotPlain(f"a value larger than {SIZE_LIMIT_BYTES // 1024 // 1024} MB")


def _is_bare(kind: type, items: list[Any]) -> bool:
    """Whether these, all of one type, are their own encodings."""
    if kind is int:
        return bool(min(items) > -_SMALL_INT and max(items) < _SMALL_INT)
    if kind is str:
        return "".join(items).isascii()
    if kind is float:
        return math.isfinite(sum(items))
    return kind is bool or kind is _NONE


def _tag_of(kind: type) -> str:
    """What a type that travels is called; "" for any other."""
    tag = _TAGS.get(kind)
    if tag is None:
        name = kind.__name__
        home = sys.modules.get(_HOMES.get(name, ""))
        tag = _TAGS[kind] = name if home is not None and getattr(home, name, None) is kind else ""
    return tag


def _type_of(tag: str) -> Any:
    """The type that is called so."""
    home = _HOMES.get(tag, "builtins")
    __import__(home)
    return getattr(sys.modules[home], tag)


def _name_of(kind: type) -> str:
    name = kind.__name__
    module = getattr(kind, "__module__", "")
    is_known = isinstance(module, str) and module not in ("builtins", "__main__", "solution")
    return (f"{module}.{name}" if is_known else name)[:_UNKNOWN_TEXT]


def _same(value: Any) -> Any:
    return value


def _encode_str(value: str) -> Encoded:
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return {"str": value.encode("utf-8", "surrogatepass").hex()}
    return value


def _encode_int(value: int) -> Encoded:
    return value if -_SMALL_INT < value < _SMALL_INT else {"int": hex(value)}


def _encode_float(value: float) -> Encoded:
    return value if math.isfinite(value) else {"float": repr(value)}


def _encode_moment(value: datetime | time) -> str:
    if value.tzinfo is not None and type(value.tzinfo) is not _type_of("timezone"):
        raise NotPlain(f"a {type(value).__name__} in a time zone that is more than an offset")
    return value.isoformat()


_NONE = type(None)
_SCALARS: dict[type, Callable[[Any], Encoded]] = {
    _NONE: _same,
    bool: _same,
    str: _encode_str,
    int: _encode_int,
    float: _encode_float,
}
_TAGS: dict[type, str] = {
    kind: kind.__name__ for kind in (list, tuple, set, frozenset, dict, bytes, bytearray, complex, range)
}  # types seen so far
_HOMES = {
    **dict.fromkeys(("Counter", "OrderedDict", "defaultdict", "deque"), "collections"),
    **dict.fromkeys(("date", "datetime", "time", "timedelta", "timezone"), "datetime"),
    "Decimal": "decimal",
    "Fraction": "fractions",
}
_SEQUENCES = frozenset({"tuple", "set", "frozenset", "deque"})
_MAPPINGS = frozenset({"dict", "Counter", "OrderedDict", "defaultdict"})  # what the last makes for a missing key stays behind
_MUTABLE = frozenset({"list", "set", "bytearray", "deque", *_MAPPINGS})
_ATOMS: dict[str, Callable[[Any], Any]] = {
    "bytes": lambda value: value.hex(),
    "bytearray": lambda value: value.hex(),
    "complex": lambda value: [_encode_float(value.real), _encode_float(value.imag)],
    "range": lambda value: [_encode_int(part) for part in (value.start, value.stop, value.step)],
    "Decimal": str,
    "Fraction": lambda value: [_encode_int(value.numerator), _encode_int(value.denominator)],
    "datetime": _encode_moment,
    "time": _encode_moment,
    "date": lambda value: value.isoformat(),
    "timedelta": lambda value: [value.days, value.seconds, value.microseconds],
}


class _Decoder:
    def __init__(self, track: Track | None, extra: Callable[[str, Any], Any] | None) -> None:
        self._track = track
        self._extra = extra

    def decode(self, encoded: Encoded, depth: int) -> Any:
        kind = type(encoded)
        if kind in _SCALARS:
            return encoded
        if depth > DEPTH_LIMIT:
            raise Malformed(f"nested deeper than {DEPTH_LIMIT}")
        if kind is list:
            return self._list(encoded, depth)
        if kind is not dict or len(encoded) != 1:
            raise Malformed(f"a {kind.__name__} that has no meaning")
        ((tag, content),) = encoded.items()
        return self._tagged(tag, content, depth)

    def _tagged(self, tag: str, content: Any, depth: int) -> Any:
        if tag in _FILLED:
            container = self._met(_type_of(tag)())
            _FILLED[tag](container, self._items(tag, content, depth))
            return container
        if tag in _MADE:
            return _MADE[tag](self._items(tag, content, depth))
        if tag in _ATOMS_BACK:
            return _ATOMS_BACK[tag](content, self)
        if tag == "bytearray":
            return self._met(bytearray.fromhex(content))
        if tag == "ref" and self._track is not None and type(content) is int and 0 <= content < len(self._track):
            return self._track[content]
        if self._extra is None:
            raise Malformed(f"no value is called {tag[:_UNKNOWN_TEXT]}")
        return self._extra(tag, content)

    def _list(self, encoded: list[Encoded], depth: int) -> list[Any]:
        if _SCALARS.keys() >= set(map(type, encoded)):
            return self._met(encoded)  # type: ignore[no-any-return]  # its own decoding
        made: list[Any] = self._met([])
        made.extend([self.decode(item, depth + 1) for item in encoded])
        return made

    def _items(self, tag: str, content: Any, depth: int) -> list[Any]:
        if type(content) is not list:
            raise Malformed(f"a {tag} of no list")
        if tag in _MAPPINGS:
            return [(self.decode(key, depth + 1), self.decode(value, depth + 1)) for key, value in content]
        return [self.decode(item, depth + 1) for item in content]

    def _met(self, container: Any) -> Any:
        if self._track is not None:
            self._track.append(container)
        return container


def _fill_mapping(container: Any, pairs: list[tuple[Any, Any]]) -> None:
    for key, value in pairs:
        container[key] = value


_FILLED: dict[str, Callable[[Any, list[Any]], None]] = {
    "set": lambda container, items: container.update(items),
    "deque": lambda container, items: container.extend(items),
    **dict.fromkeys(_MAPPINGS, _fill_mapping),
}
_MADE: dict[str, Callable[[list[Any]], Any]] = {"tuple": tuple, "frozenset": frozenset}
_ATOMS_BACK: dict[str, Callable[[Any, _Decoder], Any]] = {
    "str": lambda content, _: bytes.fromhex(content).decode("utf-8", "surrogatepass"),
    "int": lambda content, _: int(content, 16),
    "float": lambda content, _: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content],
    "bytes": lambda content, _: bytes.fromhex(content),
    "complex": lambda content, decoder: complex(*(decoder.decode(part, DEPTH_LIMIT) for part in content)),
    "range": lambda content, decoder: range(*(decoder.decode(part, DEPTH_LIMIT) for part in content)),
    "Decimal": lambda content, _: _type_of("Decimal")(content),
    "Fraction": lambda content, decoder: _type_of("Fraction")(*(decoder.decode(part, DEPTH_LIMIT) for part in content)),
    "datetime": lambda content, _: _type_of("datetime").fromisoformat(content),
    "time": lambda content, _: _type_of("time").fromisoformat(content),
    "date": lambda content, _: _type_of("date").fromisoformat(content),
    "timedelta": lambda content, _: _type_of("timedelta")(*content),
}


class Snapshot:
    """What tracked containers hold, to tell later which of them were changed."""

    def __init__(self, track: Track) -> None:
        self._before = [(container, _parts(container)) for container in track]

    def changed(self) -> list[int]:
        """Numbers of those that hold something else now."""
        return [number for number, (container, parts) in enumerate(self._before) if not _are_same(parts, _parts(container))]


def _parts(container: Any) -> list[Any]:
    if isinstance(container, dict):
        return [*container, *container.values()]
    return [] if isinstance(container, _Stand) else list(container)


def _are_same(before: list[Any], after: list[Any]) -> bool:
    return len(before) == len(after) and all(map(is_, before, after))


def replace_content(container: Any, content: Any) -> None:
    """Make a container hold what another of its type holds.

    Raises:
        Malformed: they are of different types.
    """
    if type(container) is not type(content):
        raise Malformed(f"a {type(container).__name__} cannot become a {type(content).__name__}")
    if isinstance(container, (list, bytearray)):
        container[:] = content
        return
    container.clear()
    (container.extend if _tag_of(type(container)) == "deque" else container.update)(content)
