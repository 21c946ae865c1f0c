"""What tasks are in the journal, which does not look into its bodies: JSON of the values in `types.py`."""

from __future__ import annotations

import msgspec

from atlas.ralph.requests import Correction
from atlas.types import Event, Request, Run

SOLVE = "solve"  # the kind of these tasks

_request = msgspec.json.Decoder(Request)
_event: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_run = msgspec.json.Decoder(Run)
_correction = msgspec.json.Decoder(Correction)


def read_request(body: bytes) -> Request:
    """What was submitted. Raises msgspec.MsgspecError, as the others: it is not of this form."""
    return _request.decode(body)


def read_event(body: bytes) -> Event:
    """One event of a task."""
    return _event.decode(body)


def read_run(body: bytes) -> Run | None:
    """The result of a task; None where it was ended before there was one."""
    return _run.decode(body) if body else None


def read_correction(body: bytes) -> Correction | None:
    """What the user made of the result; None if nothing."""
    return _correction.decode(body) if body else None
