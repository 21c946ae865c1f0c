from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from atlas.errors import Conflict
from atlas.store import AuditEntry, Change, Store
from atlas.store.audit import HEAD, NO_HASH
from atlas.store.tables import audit_log, meta
from tests.store.conftest import PASSWORD, SOURCE, OpenStore, add_user, set_up


def note(store: Store, name: str) -> None:
    store.audit.note(Change(at=1.5, actor="test", action="thing.happened", object=name, detail={"b": 1, "a": "é"}, source=SOURCE))


def alter(store: Store, statement: sa.Executable) -> None:
    store._ledger.write(lambda connection: connection.execute(statement)).result()


def actions(store: Store) -> list[str]:
    return [entry.action for entry in reversed(store.audit.entries())]


def test_every_change_is_recorded_with_who_and_from_where(store: Store) -> None:
    owner = set_up(store)
    bob = add_user(store)
    info = store.keys.mint("laptop", owner=bob.id, actor=owner.id).info
    store.keys.revoke(store.keys.rotate(info.id, actor=owner.id).info.id, actor=owner.id)
    store.accounts.change_password(bob.id, PASSWORD, "another long password", source=SOURCE)
    session = store.sessions.open(bob, source=SOURCE, user_agent="").session
    store.sessions.close(session.id, actor=bob.id)
    store.accounts.update(bob.id, actor=owner.id, role="admin")
    assert actions(store) == [
        "setup.completed",
        "invitation.made",
        "user.registered",
        "key.minted",
        "key.rotated",
        "key.revoked",
        "password.changed",
        "session.opened",
        "session.closed",
        "user.updated",
    ]
    latest = store.audit.entries(1)[0]
    assert (latest.actor, latest.object, latest.detail) == (owner.id, bob.id, {"role": "admin"})
    registered = store.audit.entries()[-3]
    assert (registered.actor, registered.object, registered.source) == (bob.id, bob.id, SOURCE)


def test_a_refused_change_is_not_recorded(store: Store) -> None:
    owner = set_up(store)
    before = actions(store)
    with pytest.raises(Conflict):
        store.accounts.update(owner.id, actor="test", role="member")
    assert actions(store) == before


def test_no_secret_is_in_the_log(store: Store) -> None:
    owner = set_up(store)
    invitation = store.accounts.invite(actor=owner.id)
    reset = store.accounts.reset_token(owner.id, actor=owner.id)
    key = store.keys.mint("laptop").key
    session = store.sessions.open(owner, source=SOURCE, user_agent="")
    told = repr(store.audit.entries())
    secrets = (invitation.token, reset, key, session.token, session.session.csrf, PASSWORD)
    assert not [secret for secret in secrets if secret in told]


def test_entries_come_in_pages_the_newest_first(store: Store) -> None:
    for index in range(5):
        note(store, str(index))
    page = store.audit.entries(2)
    rest = store.audit.entries(10, before=page[-1].seq)
    assert [entry.object for entry in [*page, *rest]] == ["4", "3", "2", "1", "0"]


def test_the_hash_is_as_documented(store: Store) -> None:
    note(store, "one")
    note(store, "two")
    second, first = store.audit.entries()

    def expected(entry: AuditEntry, previous: str) -> str:
        told = [entry.seq, entry.at, entry.actor, entry.action, entry.object, json.dumps(entry.detail, sort_keys=True), SOURCE]
        return hashlib.sha256((previous + json.dumps(told, separators=(",", ":"))).encode()).hexdigest()

    assert first.hash == expected(first, NO_HASH)
    assert second.hash == expected(second, first.hash)
    assert second.detail == {"a": "é", "b": 1}


@pytest.mark.parametrize(
    ("damage", "broken"),
    [
        (lambda: audit_log.update().where(audit_log.c.seq == 3).values(actor="somebody else"), 3),
        (lambda: audit_log.update().where(audit_log.c.seq == 3).values(detail="{}"), 3),
        (lambda: audit_log.update().where(audit_log.c.seq == 3).values(at=2.5), 3),
        (lambda: audit_log.update().where(audit_log.c.seq == 3).values(hash="0" * 64), 3),
        (lambda: audit_log.delete().where(audit_log.c.seq == 1), 1),
        (lambda: audit_log.delete().where(audit_log.c.seq == 3), 3),
        (lambda: audit_log.delete().where(audit_log.c.seq == 5), 5),
        (lambda: audit_log.delete(), 1),
        (lambda: meta.delete().where(meta.c.name == HEAD), 6),
    ],
    ids=["actor", "detail", "time", "hash", "first gone", "middle gone", "last gone", "all gone", "head gone"],
)
def test_an_edited_or_missing_entry_is_found(store: Store, damage: Callable[[], sa.Executable], broken: int) -> None:
    for index in range(5):
        note(store, str(index))
    assert store.audit.verify() is None
    alter(store, damage())
    assert store.audit.verify() == broken


def test_a_rewritten_entry_breaks_the_next_one(store: Store) -> None:
    """Even if its own hash is made to fit."""
    for index in range(3):
        note(store, str(index))
    entry = store.audit.entries()[1]
    first = store.audit.entries()[2]
    told = [2, entry.at, "eve", entry.action, entry.object, json.dumps(entry.detail, sort_keys=True), SOURCE]
    fitting = hashlib.sha256((first.hash + json.dumps(told, separators=(",", ":"))).encode()).hexdigest()
    alter(store, audit_log.update().where(audit_log.c.seq == 2).values(actor="eve", hash=fitting))
    assert store.audit.verify() == 3


def test_an_empty_log_is_whole(store: Store) -> None:
    assert store.audit.verify() is None


def test_entries_of_many_threads_make_one_chain(reopen: OpenStore) -> None:
    store = reopen()
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda index: note(store, str(index)), range(100)))
    again = reopen()
    assert again.audit.verify() is None
    assert [entry.seq for entry in again.audit.entries(200)] == list(range(100, 0, -1))
