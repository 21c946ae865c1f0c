"""The protocol between workers and the main process: MessagePack of tagged unions, one message a frame.

A worker says Hello first, and hears Welcome or Refused. Every other call has a number, under which its answer comes: Done, or
Failed; a Generate is answered by any number of News and then Done. Calls about a task name the delivery, from which main derives
whose it is and who pays: a worker has no say in that. `Stop` comes unasked, when a delivery is to end or is over.

It is internal: both ends are of the same version, and say so.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from atlas.errors import AtlasError, Unavailable
from atlas.types import Candidate, Delta, Execution, Generation, Program, ProjectVerdict, Prompt, Route, RunLimits, Snippet

VERSION = 2
MESSAGE_LIMIT_BYTES = 32 * 1024 * 1024  # of a frame; results are cut to half of it (chosen)

Ordered = Literal["cancelled", "lost"]
Outcome = Literal["done", "failed", "cancelled"]


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="is"):
    """Base of all that travels."""


class Call(Message, frozen=True, kw_only=True):
    """Base of what a worker asks; its answer bears the same `id`, which no other open call of the connection has."""

    id: int


class TaskCall(Call, frozen=True, kw_only=True):
    """Base of what is asked under a lease.

    Attributes:
        task: id of the task.
        delivery: number of the present delivery.
    """

    task: str
    delivery: int


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    """The first message. `worker` is unique to one process, and stands in the journal."""

    version: int
    worker: str


class AskLease(Call, frozen=True, kw_only=True, tag="lease"):
    """The next task; the answer has `lease`, None if there was none for `wait_s`."""

    wait_s: float


class Beat(TaskCall, frozen=True, kw_only=True, tag="beat"):
    """The worker lives; answered by `standing`."""


class PutEvents(TaskCall, frozen=True, kw_only=True, tag="events"):
    """Tell those who follow the task."""

    bodies: tuple[bytes, ...]


class PutStep(TaskCall, frozen=True, kw_only=True, tag="step"):
    """Keep the result of a finished step; a later delivery gets it with its lease."""

    step: str
    body: bytes


class Finish(TaskCall, frozen=True, kw_only=True, tag="finish"):
    """Close the task; may be repeated until it is answered, by `finish`.

    Attributes:
        events: the last ones, for those who follow the task.
    """

    outcome: Outcome
    reason: str = ""
    result: bytes = b""
    sandbox_s: float = 0.0
    events: tuple[bytes, ...] = ()


class GiveBack(TaskCall, frozen=True, kw_only=True, tag="give_back"):
    """Have the task done by somebody else, later; an excused delivery does not count."""

    reason: str
    delay_s: float = 0.0
    is_excused: bool = False


class Generate(TaskCall, frozen=True, kw_only=True, tag="generate"):
    """Candidates; owner, priority and allowance in `prompt` are main's to set."""

    prompt: Prompt


class CancelCandidates(Call, frozen=True, kw_only=True, tag="cancel"):
    """Stop all candidates of the Generate with this id, or these; each still ends. Has no answer of its own."""

    indices: tuple[int, ...] | None = None


class RunCode(TaskCall, frozen=True, kw_only=True, tag="run"):
    """Run a program in main's sandbox; answered by `execution`."""

    program: Program
    limits: RunLimits


class JudgeEdit(TaskCall, frozen=True, kw_only=True, tag="judge"):
    """Judge an edit of the project that the task names: the worker has no say in which that is. Answered by `verdict`."""

    edit: str


class AskRoute(TaskCall, frozen=True, kw_only=True, tag="route"):
    """How much effort the task is worth; answered by `route`."""


class AskContext(TaskCall, frozen=True, kw_only=True, tag="context"):
    """What the model should read beside what the request carries; answered by `context`."""


class Rank(TaskCall, frozen=True, kw_only=True, tag="rank"):
    """Candidates without what running them showed; answered by `order`, the likeliest first."""

    candidates: tuple[Candidate, ...]


class Drop(Call, frozen=True, kw_only=True, tag="drop"):
    """The call with this id is not wanted any more, and has no answer."""


class Leased(Message, frozen=True, kw_only=True):
    """A task for a worker.

    Attributes:
        body: of the submission.
        steps: results of earlier deliveries, by name.
    """

    task: str
    delivery: int
    kind: str
    body: bytes
    steps: dict[str, bytes] = {}


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    """The worker may ask.

    Attributes:
        lease_s: a worker that is not heard of for so long has lost its task.
        sandbox: socket of a pool that the worker may ask itself; empty if there is none within its reach.
    """

    lease_s: float
    sandbox: str = ""


class Refused(Message, frozen=True, kw_only=True, tag="refused"):
    """The worker may not; the connection ends."""

    message: str


class Done(Message, frozen=True, kw_only=True, tag="done"):
    """The answer, in the field of its call."""

    id: int
    lease: Leased | None = None
    standing: Literal["held", "cancelled", "lost"] | None = None
    finish: Literal["closed", "repeated", "fenced"] | None = None
    is_done: bool = True
    execution: Execution | None = None
    verdict: ProjectVerdict | None = None
    route: Route | None = None
    context: tuple[Snippet, ...] = ()
    order: tuple[int, ...] = ()


class News(Message, frozen=True, kw_only=True, tag="news"):
    """Of a Generate: what its candidates gained, joined over a moment, and those that have ended."""

    id: int
    deltas: tuple[Delta, ...] = ()
    generations: tuple[Generation, ...] = ()


class Failed(Message, frozen=True, kw_only=True, tag="failed"):
    """What went wrong with us, by the code of an error in `errors.py`."""

    id: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None


class Stop(Message, frozen=True, kw_only=True, tag="stop"):
    """A delivery is to end and be finished as cancelled, or is over and to be dropped."""

    task: str
    delivery: int
    standing: Ordered


WorkerSays = (
    Hello
    | AskLease
    | Beat
    | PutEvents
    | PutStep
    | Finish
    | GiveBack
    | Generate
    | CancelCandidates
    | RunCode
    | JudgeEdit
    | AskRoute
    | AskContext
    | Rank
    | Drop
)
MainSays = Welcome | Refused | Done | News | Failed | Stop

_encoder = msgspec.msgpack.Encoder()
_worker_says: msgspec.msgpack.Decoder[WorkerSays] = msgspec.msgpack.Decoder(WorkerSays)
_main_says: msgspec.msgpack.Decoder[MainSays] = msgspec.msgpack.Decoder(MainSays)


def encoded(message: Message) -> bytes:
    return _encoder.encode(message)


def worker_said(frame: bytes) -> WorkerSays:
    """Raises msgspec.MsgspecError: it is not of this protocol."""
    return _worker_says.decode(frame)


def main_said(frame: bytes) -> MainSays:
    """Raises msgspec.MsgspecError: it is not of this protocol."""
    return _main_says.decode(frame)


def failed(call_id: int, error: AtlasError) -> Failed:
    """An error on its way to a worker."""
    return Failed(id=call_id, code=error.code, message=error.message, param=error.param, retry_after_s=error.retry_after_s)


def error_of(failure: Failed) -> AtlasError:
    """The same error at the other end; one of an unknown code is a passing trouble of ours."""
    kind = _errors().get(failure.code, Unavailable)
    return kind(failure.message, param=failure.param, retry_after_s=failure.retry_after_s)


def _errors() -> dict[str, type[AtlasError]]:
    """Those of `errors.py` by code; rooms have leaves of their own, which mean nothing at the other end."""
    found: dict[str, type[AtlasError]] = {}
    kinds: list[type[AtlasError]] = [AtlasError]
    while kinds:
        kind = kinds.pop(0)
        if kind.__module__ == AtlasError.__module__:
            found.setdefault(kind.code, kind)
        kinds += kind.__subclasses__()
    return found
