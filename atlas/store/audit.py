"""The audit log: who changed what, each entry hashed over the one before it.

An edited, removed or inserted entry is found by `verify`. Not covered: somebody who can write the ledger and knows this file can
compute the whole chain anew; keep a copy of a hash elsewhere to notice that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from atlas.store.ledger import Ledger
from atlas.store.rules import clipped
from atlas.store.tables import audit_log, meta

HEAD = "audit_head"  # sequence number and hash of the last entry: without it, cutting off the end would go unseen
NO_HASH = "0" * 64


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One change.

    Attributes:
        at: Unix seconds.
        actor: id of the user or key that did it, or "cli".
        action: noun.verb_past.
        object: id of what was changed.
        source: network address it came from.
        hash: SHA-256 over the previous hash and this entry's canonical JSON, in hexadecimal.
    """

    seq: int
    at: float
    actor: str
    action: str
    object: str
    detail: dict[str, Any]
    source: str
    hash: str


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What `record` is told; never a secret in `detail`."""

    at: float
    actor: str
    action: str
    object: str
    detail: Mapping[str, Any] = {}
    source: str = ""


class AuditLog:
    """Reading and checking the log; most entries are made by `record`, inside the transaction of the change itself."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def note(self, change: Change) -> None:
        """Record something that changed nothing in the ledger: a request aborted, settings read anew."""
        self._ledger.write(lambda connection: record(connection, change)).result()

    def entries(self, limit: int = 100, before: int | None = None) -> list[AuditEntry]:
        """The newest first; `before` is the sequence number to go on from."""
        query = sa.select(audit_log).order_by(audit_log.c.seq.desc()).limit(limit)
        if before is not None:
            query = query.where(audit_log.c.seq < before)
        return self._ledger.read(lambda connection: [_entry(row) for row in connection.execute(query).mappings()])

    def verify(self) -> int | None:
        """Sequence number of the first entry that is not what was written, or that is gone; None if all is well."""
        return self._ledger.read(_verify)


def record(connection: sa.Connection, change: Change) -> None:
    """Append an entry, in the caller's transaction."""
    last = connection.execute(sa.select(audit_log.c.seq, audit_log.c.hash).order_by(audit_log.c.seq.desc()).limit(1)).first()
    seq, previous = (last.seq + 1, last.hash) if last else (1, NO_HASH)
    values = {
        "seq": seq,
        "at": change.at,
        "actor": clipped(change.actor, 64),
        "action": change.action,
        "object": change.object,
        "detail": json.dumps(change.detail, sort_keys=True),
        "source": clipped(change.source, 64),
    }
    hashed = _hash(previous, values)
    connection.execute(audit_log.insert().values(**values, hash=hashed))
    head = f"{seq}:{hashed}"
    if connection.execute(meta.update().where(meta.c.name == HEAD).values(value=head)).rowcount == 0:
        connection.execute(meta.insert().values(name=HEAD, value=head))


def _verify(connection: sa.Connection) -> int | None:
    query = sa.select(audit_log).order_by(audit_log.c.seq)
    with connection.execute(query, execution_options={"yield_per": 1000}) as rows:
        seq, previous, broken = _first_broken(rows.mappings())
    if broken is not None:
        return broken
    head = connection.scalar(sa.select(meta.c.value).where(meta.c.name == HEAD))
    expected = f"{seq}:{previous}" if seq else None
    return None if head == expected else seq + 1


def _first_broken(rows: Iterable[sa.RowMapping]) -> tuple[int, str, int | None]:
    seq, previous = 0, NO_HASH
    for row in rows:
        if row["seq"] != seq + 1 or row["hash"] != _hash(previous, dict(row)):
            return seq, previous, seq + 1
        seq, previous = row["seq"], row["hash"]
    return seq, previous, None


def _hash(previous: str, values: Mapping[str, Any]) -> str:
    told = [values[name] for name in ("seq", "at", "actor", "action", "object", "detail", "source")]
    return hashlib.sha256(previous.encode() + json.dumps(told, separators=(",", ":")).encode()).hexdigest()


def _entry(row: sa.RowMapping) -> AuditEntry:
    return AuditEntry(**{**row, "detail": json.loads(row["detail"])})
