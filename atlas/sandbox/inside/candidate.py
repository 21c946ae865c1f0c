"""The candidate's side of a sealed run: answers the tests' questions with plain values."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from atlas.sandbox.inside import faults, lineage, loading, values
from atlas.sandbox.inside.frames import Channel

OUTPUT_LIMIT_CHARS = 256 * 1024


def run(payload: dict[str, Any], report: Channel, peer: Channel | None) -> int:
    """Load the candidate, say which of the wanted names it has, and answer until the tests end."""
    assert peer is not None
    streams = Streams()
    module = loading.load(report.send)
    if module is None:
        peer.send({"loaded": False})
        return 0
    server = Server(module, payload, report, streams)
    peer.send({"loaded": True, "names": server.names(), "out": streams.take()})
    while True:
        try:
            question = peer.receive()
        except EOFError:
            return 0
        answer = server.answer(question)
        try:
            peer.send(answer)
        except ValueError:
            peer.send({"id": question["id"], "strange": "a value larger than a frame holds"})


class Server:
    """Performs one operation after another on the module and on objects it has made."""

    def __init__(self, module: ModuleType, payload: dict[str, Any], report: Channel, streams: Streams) -> None:
        self._module = module
        self._entry = payload["entry"]
        self._wanted: dict[str, str] = payload["names"]
        self._report = report
        self._streams = streams
        self._objects: list[Any] = []
        self._has_told = False

    def names(self) -> dict[str, Any]:
        """Of the wanted names those that there are: lineage of an exception, value of a constant, True of anything else."""
        return {name: self._introduce(name, what) for name, what in self._wanted.items() if hasattr(self._module, name)}

    def _introduce(self, name: str, what: str) -> Any:
        found = getattr(self._module, name)
        if what == "exception" and isinstance(found, type) and issubclass(found, BaseException):
            return {"lineage": lineage.trace_lineage(found)}
        if what == "constant":
            try:
                return {"value": values.encode(found)}
            except values.NotPlain as error:
                return {"strange": str(error)}
        return True

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Perform an operation, and say what came of it and what it changed in its arguments."""
        track: values.Track = []
        target, arguments = question["at"], values.decode(question["args"], track)
        before, num_sent = values.Snapshot(track), len(track)
        answer: dict[str, Any] = {"id": question["id"]}
        try:
            returned = OPERATIONS[question["do"]](self._find(target), *arguments)
            answer["value"] = self._encode(returned, track, question["do"])
        except values.NotPlain as error:
            answer["strange"] = str(error)[: faults.TEXT_LIMIT]
            del track[num_sent:]
        except BaseException as error:  # sys.exit in a call as well
            self._tell_limit(error)
            answer["raised"] = lineage.describe(error)
        answer |= self._changed(before, track)
        return answer | {"out": self._streams.take()}

    def _encode(self, returned: Any, track: values.Track, operation: str) -> values.Encoded:
        if operation == "make":  # never plain, whatever it looks like
            return self._keep("object", returned)
        return values.encode(returned, track, extra=lambda value: self._stay(value, operation))

    def _stay(self, value: Any, operation: str) -> values.Encoded | None:
        """Of what is not plain, iterators and methods stay here, and the tests may hold their number."""
        if isinstance(value, Iterator):
            return self._keep("iterator", value)
        return self._keep("method", value) if operation == "attribute" and callable(value) else None

    def _keep(self, tag: str, value: Any) -> values.Encoded:
        self._objects.append(value)
        return {tag: len(self._objects) - 1}

    def _changed(self, before: values.Snapshot, track: values.Track) -> dict[str, Any]:
        try:
            return {"changed": [[number, values.encode_content(track[number], track)] for number in before.changed()]}
        except values.NotPlain as error:
            return {"strange": f"an argument that now holds {error}"}

    def _find(self, target: list[Any]) -> Any:
        where, which = target
        if where == "object":
            return self._objects[which]
        if where == "name":
            return getattr(self._module, which)
        return loading.bind(self._module, *loading.find_entry(self._module, self._entry))

    def _tell_limit(self, error: BaseException) -> None:
        if not self._has_told and faults.names_limit(error):
            self._has_told = True
            self._report.send({"raised": faults.describe(error)})


def _set_item(target: Any, key: Any, value: Any) -> None:
    target[key] = value


def _delete_item(target: Any, key: Any) -> None:
    del target[key]


def _call(target: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    return target(*args, **kwargs)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": _call,
    "make": _call,
    "attribute": getattr,
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
    "contains": lambda target, value: value in target,
    "iter": iter,
    "next": next,
    "item": lambda target, key: target[key],
    "set_item": _set_item,
    "delete_item": _delete_item,
}


class Streams:
    """stdout and stderr between two answers, so that what a call prints is there when the call has returned."""

    def __init__(self) -> None:
        self._files = [_TextFile(), _TextFile()]
        sys.stdout, sys.stderr = self._files

    def take(self) -> list[str]:
        """What was written since the last time."""
        return [file.take() for file in self._files]


class _TextFile(io.TextIOWrapper):
    def __init__(self) -> None:
        self._bytes = io.BytesIO()
        super().__init__(self._bytes, encoding="utf-8", errors="backslashreplace", write_through=True)

    def take(self) -> str:
        content = self._bytes.getvalue()
        if not content:
            return ""
        self._bytes.seek(0)
        self._bytes.truncate()
        return content[:OUTPUT_LIMIT_CHARS].decode("utf-8", "replace")
