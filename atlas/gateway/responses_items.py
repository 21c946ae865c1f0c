"""Output items of OpenAI's Responses API: whole, and as the events that open, fill and close each of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import msgspec

from atlas.gateway import responses_wire as wire
from atlas.gateway.ids import new_id
from atlas.types import Generation

Events = Iterator[wire.Event]


def to_output(generation: Generation, *, custom: frozenset[str]) -> list[wire.OutputItem]:
    """The items of a finished answer; `custom` names the tools whose calls are of the custom kind."""
    whole: list[tuple[OpenItem, str]] = []
    if generation.reasoning:
        whole.append((OpenReasoning(0), generation.reasoning))
    if generation.text or not (generation.reasoning or generation.tool_calls):
        whole.append((OpenMessage(0), generation.text))
    whole += [(open_call(0, call.id, call.name, custom=custom), call.arguments) for call in generation.tool_calls]
    *before, (last, rest) = whole
    status: wire.ItemStatus = "incomplete" if generation.finish_reason == "length" else "completed"
    return [*(item.item(text, "completed") for item, text in before), last.item(rest, status)]


def open_call(index: int, call_id: str, name: str, *, custom: frozenset[str]) -> OpenItem:
    return OpenCustomCall(index, call_id, name) if name in custom else OpenCall(index, call_id, name)


class OpenItem(ABC):
    """An item that is being written; `index` is its place in the output."""

    prefix = ""  # of its id

    def __init__(self, index: int) -> None:
        self.index = index
        self.id = new_id(f"{self.prefix}_")
        self._pieces: list[str] = []

    @abstractmethod
    def item(self, text: str, status: wire.ItemStatus) -> wire.OutputItem:
        """The item as it stands when it holds `text`."""

    def begin(self) -> Events:
        empty = self.item("", "in_progress")
        yield wire.ItemEvent(type="response.output_item.added", output_index=self.index, item=empty)

    def feed(self, piece: str) -> Events:
        self._pieces.append(piece)
        yield from self._piece(piece)

    def end(self, status: wire.ItemStatus) -> Events:
        yield from self._whole(self.text)
        yield wire.ItemEvent(type="response.output_item.done", output_index=self.index, item=self.item(self.text, status))

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @abstractmethod
    def _piece(self, piece: str) -> Events: ...

    @abstractmethod
    def _whole(self, text: str) -> Events: ...


class OpenMessage(OpenItem):
    prefix = "msg"

    def item(self, text: str, status: wire.ItemStatus) -> wire.OutputMessage:
        begun = text or status != "in_progress"  # an item is announced before its only part
        return wire.OutputMessage(id=self.id, content=[wire.OutputText(text=text)] if begun else [], status=status)

    def begin(self) -> Events:
        yield from super().begin()
        yield self._part("added", "")

    def _piece(self, piece: str) -> Events:
        yield wire.PieceEvent(
            type="response.output_text.delta", item_id=self.id, output_index=self.index, content_index=0, delta=piece, logprobs=[]
        )

    def _whole(self, text: str) -> Events:
        yield wire.WholeEvent(
            type="response.output_text.done", item_id=self.id, output_index=self.index, content_index=0, text=text, logprobs=[]
        )
        yield self._part("done", text)

    def _part(self, stage: str, text: str) -> wire.PartEvent:
        return wire.PartEvent(
            type=f"response.content_part.{stage}", item_id=self.id, output_index=self.index, part=wire.OutputText(text=text)
        )


class OpenReasoning(OpenItem):
    prefix = "rs"

    def item(self, text: str, status: wire.ItemStatus) -> wire.OutputReasoning:
        begun = text or status != "in_progress"
        return wire.OutputReasoning(id=self.id, content=[wire.ReasoningText(text=text)] if begun else [], status=status)

    def begin(self) -> Events:
        yield from super().begin()
        yield self._part("added", "")

    def _piece(self, piece: str) -> Events:
        yield wire.PieceEvent(
            type="response.reasoning_text.delta", item_id=self.id, output_index=self.index, content_index=0, delta=piece
        )

    def _whole(self, text: str) -> Events:
        yield wire.WholeEvent(
            type="response.reasoning_text.done", item_id=self.id, output_index=self.index, content_index=0, text=text
        )
        yield self._part("done", text)

    def _part(self, stage: str, text: str) -> wire.PartEvent:
        return wire.PartEvent(
            type=f"response.content_part.{stage}", item_id=self.id, output_index=self.index, part=wire.ReasoningText(text=text)
        )


class OpenCall(OpenItem):
    """A call of a function; its text is the JSON of its arguments."""

    prefix = "fc"

    def __init__(self, index: int, call_id: str, name: str) -> None:
        super().__init__(index)
        self.call_id, self.name = call_id, name

    def item(self, text: str, status: wire.ItemStatus) -> wire.OutputItem:
        return wire.OutputCall(id=self.id, call_id=self.call_id, name=self.name, arguments=text, status=status)

    def _piece(self, piece: str) -> Events:
        yield wire.PieceEvent(
            type="response.function_call_arguments.delta", item_id=self.id, output_index=self.index, delta=piece
        )

    def _whole(self, text: str) -> Events:
        yield wire.WholeEvent(
            type="response.function_call_arguments.done",
            item_id=self.id,
            output_index=self.index,
            arguments=text,
            name=self.name,
        )


class OpenCustomCall(OpenCall):
    """A call of a custom tool. Its input is one JSON string inside the arguments, so it is told in one piece at the end."""

    prefix = "ctc"

    def item(self, text: str, status: wire.ItemStatus) -> wire.OutputItem:
        return wire.OutputCustomCall(
            id=self.id, call_id=self.call_id, name=self.name, input=to_input(text) if text else "", status=status
        )

    def _piece(self, piece: str) -> Events:
        yield from ()

    def _whole(self, text: str) -> Events:
        given = to_input(text)
        yield wire.PieceEvent(type="response.custom_tool_call_input.delta", item_id=self.id, output_index=self.index, delta=given)
        yield wire.WholeEvent(type="response.custom_tool_call_input.done", item_id=self.id, output_index=self.index, input=given)


class _CustomArguments(msgspec.Struct):
    input: str


def to_input(arguments: str) -> str:
    """The text in a custom call's arguments; what is no such object (the answer was cut in its middle, say) as it is."""
    try:
        return msgspec.json.decode(arguments, type=_CustomArguments).input
    except msgspec.MsgspecError:
        return arguments
