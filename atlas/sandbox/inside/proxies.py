"""The tests' side of a sealed run: the module `solution`, whose functions and objects are in another box.

What comes back is a plain value, made again here; or an object of ours that only asks the other box, equals nothing but itself,
and knows no arithmetic. Anything else is a `Violation`: the test in which it happens has failed, whatever else it does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NoReturn

from atlas.sandbox.inside import lineage, values
from atlas.sandbox.inside.frames import Channel

_ONLY_PLAIN = "only plain values can cross between the boxes of tests and code"


class Violation(BaseException):
    """The candidate did not answer, or with something that is no plain value. No `except Exception` of a test may catch it."""


class Link:
    """Asks the candidate's box, one question at a time.

    Attributes:
        violations: of the whole session; a test in which one was added has failed.
        lost: why there is nobody to ask any more; "" if there is.
        is_forged: because what came was no answer.
    """

    def __init__(self, peer: Channel) -> None:
        self._peer = peer
        self._number = 0
        self._classes = lineage.Classes()
        self.violations: list[str] = []
        self.lost = ""
        self.is_forged = False

    def hello(self) -> dict[str, Any] | None:
        """What the candidate has of the names that the tests want; None if it could not be loaded."""
        try:
            told = self._peer.receive()
            if told["loaded"] is not True:
                return None
            self._write(told["out"])
            return dict(told["names"])
        except (EOFError, KeyError, TypeError, ValueError):
            return None

    def exception_class(self, told: Any) -> type[BaseException]:
        return self._classes.make(told)

    def ask(self, operation: str, target: list[Any], *arguments: Any) -> Any:
        """Perform an operation over there; its result, or its exception.

        Raises:
            Violation: there is no result that could be had here.
        """
        track: values.Track = []
        try:
            sent = values.encode(list(arguments), track)
        except values.NotPlain as error:
            self.violate(f"the tests pass {error} to the code; {_ONLY_PLAIN}")
        answer = self._exchange({"do": operation, "at": target, "args": sent})
        try:
            return self._understand(answer, track, operation)
        except (values.Malformed, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            self.lose(f"the code's process answered with what is no answer ({error})"[:300])

    def _exchange(self, question: dict[str, Any]) -> Any:
        if self.lost:
            self.violate(self.lost)
        self._number += 1
        try:
            self._peer.send(question | {"id": self._number})
            answer = self._peer.receive()
        except ValueError:
            self.violate("the tests pass more than a frame holds")
        except (EOFError, OSError):
            self.lose("the code's process ended before it had answered", is_forged=False)
        if type(answer) is not dict or answer.get("id") != self._number:
            self.lose("the code's process answered what it was not asked")
        return answer

    def _understand(self, answer: dict[str, Any], track: values.Track, operation: str) -> Any:
        num_sent = len(track)
        self._write(answer.get("out", ()))
        returned = None
        if "value" in answer:
            returned = values.decode(answer["value"], track, extra=lambda tag, content: self._remote(tag, content, operation))
        self._change(answer.get("changed", ()), track, num_sent)
        if "strange" in answer:
            return Strange(self, f"the code returned {str(answer['strange'])[:200]}; {_ONLY_PLAIN}")
        if "raised" in answer:
            raise _Raised(self._classes.build(answer["raised"]))
        return returned if "value" in answer else self.lose("the code's process answered nothing")

    def _remote(self, tag: str, content: Any, operation: str) -> Any:
        if type(content) is not int:
            raise values.Malformed(f"a {tag} without a number")
        if tag == "iterator":
            return RemoteIterator(self, content)
        if (tag, operation) == ("object", "make"):
            return RemoteObject(self, content)
        if (tag, operation) == ("method", "attribute"):
            return RemoteFunction(self, ["object", content])
        raise values.Malformed(f"no value is called {tag[:40]}")

    @staticmethod
    def _change(changed: Any, track: values.Track, num_sent: int) -> None:
        """Make the tests' own containers hold what the code left in them."""
        contents = [(int(number), values.decode(content, track)) for number, content in changed]
        for number, content in contents:
            if not 0 <= number < num_sent:
                raise values.Malformed("a change of what was not sent")
            values.replace_content(track[number], content)

    @staticmethod
    def _write(output: Any) -> None:
        for text, file in zip(output, (sys.stdout, sys.stderr), strict=False):
            if text:
                file.write(str(text))

    def violate(self, message: str) -> NoReturn:
        self.violations.append(message)
        raise Violation(message)

    def lose(self, reason: str, *, is_forged: bool = True) -> NoReturn:
        self.lost, self.is_forged = reason, is_forged
        self.violate(self.lost)


class _Raised(Exception):
    """Carries the candidate's exception past the handlers of `ask`, which are for answers that are none."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


def _ask(link: Link, operation: str, target: list[Any], *arguments: Any) -> Any:
    __tracebackhide__ = True
    try:
        return link.ask(operation, target, *arguments)
    except _Raised as raised:
        error = raised.error
    raise error


class RemoteFunction:
    """A function, or a method of an object, of the candidate."""

    def __init__(self, link: Link, target: list[Any], operation: str = "call") -> None:
        self._link = link
        self._target = target
        self._operation = operation

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return _ask(self._link, self._operation, self._target, args, kwargs)


class Remote:
    """What is held by a number: equal to itself only."""

    __slots__ = ("_link", "_target")
    _link: Link
    _target: list[Any]

    def __init__(self, link: Link, number: int) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_target", ["object", number])


class RemoteIterator(Remote):
    """An iterator of the candidate; each step is a question."""

    __slots__ = ()

    def __iter__(self) -> RemoteIterator:
        return self

    def __next__(self) -> Any:
        return _ask(self._link, "next", self._target)


class RemoteObject(Remote):
    """An instance of a class of the candidate."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _ask(self._link, "attribute", self._target, name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name}: objects in another box are not changed by assignment")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _ask(self._link, "call", self._target, args, kwargs)

    def __len__(self) -> int:
        return self._of_type(int, "len")  # type: ignore[no-any-return]

    def __bool__(self) -> bool:
        return self._of_type(bool, "bool")  # type: ignore[no-any-return]

    def __str__(self) -> str:
        return self._of_type(str, "str")  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return self._of_type(str, "repr")  # type: ignore[no-any-return]

    def __contains__(self, value: Any) -> bool:
        return self._of_type(bool, "contains", value)  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[Any]:
        return self._of_type(RemoteIterator, "iter")  # type: ignore[no-any-return]

    def __next__(self) -> Any:
        return _ask(self._link, "next", self._target)

    def __getitem__(self, key: Any) -> Any:
        return _ask(self._link, "item", self._target, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _ask(self._link, "set_item", self._target, key, value)

    def __delitem__(self, key: Any) -> None:
        _ask(self._link, "delete_item", self._target, key)

    def _of_type(self, kind: type, operation: str, *arguments: Any) -> Any:
        answer = _ask(self._link, operation, self._target, *arguments)
        if type(answer) is not kind:
            self._link.violate(f"{operation} of an object of the code is no {kind.__name__}")
        return answer


class Strange:
    """Stands for a result that is not plain: may be ignored, as a test may ignore a result, but not looked at."""

    def __init__(self, link: Link, message: str) -> None:
        self.__dict__.update(_link=link, _message=message)

    def _refuse(self, *_: Any) -> NoReturn:
        link: Link = self.__dict__["_link"]
        link.violate(self.__dict__["_message"])

    def __getattribute__(self, name: str) -> Any:
        if name not in ("__dict__", "_refuse"):
            self._refuse()
        return object.__getattribute__(self, name)


_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
_REFUSED = (
    *("eq", "ne", "lt", "le", "gt", "ge", "bool", "len", "iter", "next", "contains", "getitem", "setitem", "delitem", "call"),
    *("hash", "repr", "str", "format", "bytes", "int", "float", "complex", "index", "enter", "exit", "neg", "pos", "abs"),
    *("invert", "round", "setattr", "delattr", "reversed", *_ARITHMETIC, *(f"r{name}" for name in _ARITHMETIC)),
)
for _name in _REFUSED:
    setattr(Strange, f"__{_name}__", Strange._refuse)  # noqa: SLF001 - ours


def install(link: Link, wanted: dict[str, str], told: dict[str, Any]) -> ModuleType:
    """Make `solution` importable: what the tests want of it, as far as the candidate has it."""
    module = ModuleType("solution")
    for name, what in wanted.items():
        if name in told:
            setattr(module, name, _proxy(link, name, what, told[name]))
    sys.modules["solution"] = module
    return module


def _proxy(link: Link, name: str, what: str, told: Any) -> Any:
    facts = told if isinstance(told, dict) else {}
    try:
        if what == "exception" and "lineage" in facts:
            return link.exception_class(facts["lineage"])
        if what == "constant" and "value" in facts:
            return values.decode(facts["value"])
    except values.Malformed as error:
        return Strange(link, f"{name} is no value: {error}")
    if what == "constant":
        return Strange(link, f"{name} is {str(facts.get('strange'))[:200]}; {_ONLY_PLAIN}")
    return RemoteFunction(link, ["name", name], "make" if what == "class" else "call")
