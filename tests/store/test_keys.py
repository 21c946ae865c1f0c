from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from atlas.directory import DataDirectory
from atlas.errors import BadRequest, Conflict, NotFound, SettingsError, Unauthorized
from atlas.settings import LimitSettings
from atlas.store import DEFAULT_SCOPES, Store, open_store
from atlas.store.keyring import LAST_USED_RESOLUTION_S
from atlas.store.keys import is_well_formed, new_key
from atlas.types import Limits
from tests.store.conftest import Clock, OpenStore, add_user, set_up


def test_a_minted_key_verifies_to_its_principal(store: Store) -> None:
    limits = Limits(requests_per_minute=5)
    key, info = store.keys.mint("laptop", scopes=("chat", "tasks"), models=("nano",), limits=limits)
    principal = store.keys.verify(key)
    owner = store.accounts.owner()
    assert (principal.key_id, principal.name, principal.owner, principal.role) == (info.id, "laptop", owner.id, "owner")
    assert principal.scopes == {"chat", "tasks"}
    assert principal.models == frozenset({"nano"})
    assert principal.key_limits == limits


def test_a_key_without_particulars_gets_the_default_scopes_and_all_models(store: Store) -> None:
    principal = store.keys.verify(store.keys.mint("laptop").key)
    assert principal.scopes == set(DEFAULT_SCOPES)
    assert principal.models is None


def test_a_key_leaves_this_machine_only_if_it_says_so_and_keeps_that_when_rotated(reopen: OpenStore) -> None:
    store = reopen()
    assert not store.keys.verify(store.keys.mint("home").key).allow_remote
    info = store.keys.mint("away", allow_remote=True).info
    rotated = store.keys.rotate(info.id, actor="x")
    assert reopen().keys.verify(rotated.key).allow_remote
    store = reopen()
    store.keys.update(rotated.info.id, actor="x", allow_remote=False)
    assert not store.keys.verify(rotated.key).allow_remote


def test_a_revoked_key_is_refused_at_once(store: Store) -> None:
    key, info = store.keys.mint("laptop")
    store.keys.revoke(info.id)
    with pytest.raises(Unauthorized, match="'laptop' is revoked"):
        store.keys.verify(key)


def test_revoking_twice_keeps_the_first_time(reopen: OpenStore, clock: Clock) -> None:
    store = reopen(clock=clock)
    info = store.keys.mint("laptop").info
    first = store.keys.revoke(info.id)
    clock.advance(5)
    assert store.keys.revoke(info.id).revoked_at == first.revoked_at


def test_a_key_ends_when_it_expires(reopen: OpenStore, clock: Clock) -> None:
    store = reopen(clock=clock)
    key, _ = store.keys.mint("short", expires_at=clock() + 10)
    store.keys.verify(key)
    clock.advance(10)
    with pytest.raises(Unauthorized, match="expired"):
        store.keys.verify(key)


def test_a_key_can_be_switched_off_and_on(store: Store) -> None:
    key, info = store.keys.mint("laptop")
    store.keys.set_active(info.id, False, actor="test")
    with pytest.raises(Unauthorized, match="switched off"):
        store.keys.verify(key)
    store.keys.set_active(info.id, True, actor="test")
    assert store.keys.verify(key).key_id == info.id


def test_a_rotated_key_is_replaced_in_everything_and_lives_for_its_grace(reopen: OpenStore, clock: Clock) -> None:
    store = reopen(clock=clock)
    old_key, old = store.keys.mint("ci", scopes=("chat",), models=("nano",), limits=Limits(concurrency=2))
    new_key_text, new = store.keys.rotate(old.id, grace_s=60, actor="test")
    assert (new.name, new.owner, new.scopes, new.models, new.limits) == (old.name, old.owner, old.scopes, old.models, old.limits)
    assert store.keys.get(old.id).rotated_to == new.id
    assert {store.keys.verify(key).key_id for key in (old_key, new_key_text)} == {old.id, new.id}
    clock.advance(60)
    with pytest.raises(Unauthorized, match="expired"):
        store.keys.verify(old_key)
    store.keys.verify(new_key_text)


def test_rotation_without_grace_ends_the_old_key_at_once(store: Store) -> None:
    old_key, old = store.keys.mint("ci")
    store.keys.rotate(old.id, actor="test")
    with pytest.raises(Unauthorized, match="revoked"):
        store.keys.verify(old_key)


def test_grace_does_not_outlast_the_key_itself(reopen: OpenStore, clock: Clock) -> None:
    store = reopen(clock=clock)
    info = store.keys.mint("ci", expires_at=clock() + 5).info
    store.keys.rotate(info.id, grace_s=60, actor="test")
    assert store.keys.get(info.id).expires_at == clock() + 5


@pytest.mark.parametrize("ended", ["revoke", "rotate", "switch off"])
def test_a_key_that_has_ended_is_not_rotated(store: Store, ended: str) -> None:
    info = store.keys.mint("ci").info
    if ended == "revoke":
        store.keys.revoke(info.id)
    elif ended == "rotate":
        store.keys.rotate(info.id, grace_s=60, actor="test")
    else:
        store.keys.set_active(info.id, False, actor="test")
    with pytest.raises(Conflict):
        store.keys.rotate(info.id, actor="test")


def test_a_revoked_key_cannot_be_changed(store: Store) -> None:
    info = store.keys.mint("ci").info
    store.keys.revoke(info.id)
    with pytest.raises(Conflict, match="for good"):
        store.keys.set_active(info.id, True, actor="test")
    with pytest.raises(Conflict):
        store.keys.update(info.id, actor="test", name="other")


def test_an_update_counts_for_the_next_request_and_after_reopening(reopen: OpenStore) -> None:
    store = reopen()
    key, info = store.keys.mint("ci", models=("nano",), expires_at=time.time() + 60)
    store.keys.verify(key)
    changed = store.keys.update(info.id, actor="test", name="build", scopes=("chat",), models=None, expires_at=None)
    assert (changed.name, changed.scopes, changed.models, changed.expires_at) == ("build", ("chat",), None, None)
    assert store.keys.verify(key).scopes == {"chat"}
    again = reopen()
    assert again.keys.verify(key).models is None
    assert again.keys.get(info.id).expires_at is None


def test_an_update_leaves_alone_what_it_does_not_name(store: Store) -> None:
    info = store.keys.mint("ci", models=("nano",)).info
    changed = store.keys.update(info.id, actor="test", limits=Limits(concurrency=1))
    assert (changed.name, changed.models, changed.limits.concurrency) == ("ci", ("nano",), 1)


def test_a_well_formed_but_unknown_key_is_refused_without_being_repeated(store: Store) -> None:
    key = new_key()
    with pytest.raises(Unauthorized) as caught:
        store.keys.verify(key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("token", ["", "sk-llm-", "sk-llm-" + "a" * 49, "' OR 1=1 --", "\udc80" * 56, "é" * 56])
def test_anything_else_is_refused(directory: DataDirectory, token: str) -> None:
    store = open_store(directory)
    with pytest.raises(Unauthorized):
        store.keys.verify(token)
    store.close()


def test_one_wrong_character_breaks_the_checksum() -> None:
    key = new_key()
    assert is_well_formed(key)
    other = "b" if key[20] == "a" else "a"
    assert not is_well_formed(key[:20] + other + key[21:])


def test_keys_survive_reopening_and_no_key_is_in_the_files(directory: DataDirectory, reopen: OpenStore) -> None:
    store = reopen()
    key, info = store.keys.mint("laptop")
    store.keys.revoke(store.keys.mint("gone").info.id)
    again = reopen()
    assert again.keys.verify(key).key_id == info.id
    assert [known.revoked_at is None for known in again.keys.list()] == [True, False]
    assert key.encode() not in b"".join(path.read_bytes() for path in directory.path.rglob("*") if path.is_file())


def test_an_unknown_id_is_named(store: Store) -> None:
    for refused in (store.keys.revoke, store.keys.get):
        with pytest.raises(NotFound, match="'key_nope'"):
            refused("key_nope")


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"scopes": ("chat", "everything")}, "scopes"),
        ({"models": ()}, "models"),
        ({"models": ("a\0b",)}, "models"),
        ({"limits": Limits(concurrency=0)}, "limits"),
        ({"expires_at": float("nan")}, "expires_at"),
    ],
)
def test_a_value_that_does_not_fit_is_named(store: Store, values: dict[str, object], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        store.keys.mint(**{"name": "laptop", **values})  # type: ignore[arg-type]  # wrong on purpose
    assert caught.value.param == param
    info = store.keys.mint("laptop").info
    with pytest.raises(BadRequest):
        store.keys.update(info.id, actor="test", **values)  # type: ignore[arg-type]
    assert store.keys.get(info.id) == info


def test_a_key_for_a_user_who_does_not_exist_is_not_made(store: Store) -> None:
    with pytest.raises(NotFound, match="usr_nobody"):
        store.keys.mint("laptop", owner="usr_nobody")


def test_members_keys_are_theirs_and_cannot_administrate(store: Store) -> None:
    set_up(store)
    bob = add_user(store)
    with pytest.raises(BadRequest, match="administrators"):
        store.keys.mint("mine", owner=bob.id, scopes=("chat", "admin"))
    info = store.keys.mint("mine", owner=bob.id).info
    store.keys.mint("the owner's")
    assert store.keys.list(bob.id) == [info]
    assert len(store.keys.list()) == 2


def test_a_demoted_admins_key_loses_its_power_at_once(store: Store) -> None:
    set_up(store)
    bob = add_user(store, role="admin")
    key = store.keys.mint("power", owner=bob.id, scopes=("chat", "admin")).key
    assert "admin" in store.keys.verify(key).scopes
    store.accounts.update(bob.id, actor="test", role="member")
    assert store.keys.verify(key).scopes == {"chat"}


def test_a_disabled_users_keys_are_refused_at_once_and_come_back(store: Store) -> None:
    set_up(store)
    bob = add_user(store)
    key = store.keys.mint("mine", owner=bob.id).key
    store.keys.verify(key)
    store.accounts.update(bob.id, actor="test", disabled=True)
    with pytest.raises(Unauthorized, match="disabled"):
        store.keys.verify(key)
    store.accounts.update(bob.id, actor="test", disabled=False)
    assert store.keys.verify(key).owner == bob.id


def test_a_users_limits_are_completed_by_the_settings(reopen: OpenStore) -> None:
    store = reopen(limits=LimitSettings(requests_per_minute=60, tokens_per_day=1000))
    key = store.keys.mint("laptop").key
    assert store.keys.verify(key).user_limits == Limits(requests_per_minute=60, tokens_per_day=1000)
    store.accounts.update(store.accounts.owner().id, actor="test", limits=Limits(requests_per_minute=5, concurrency=2))
    expected = Limits(requests_per_minute=5, concurrency=2, tokens_per_day=1000)
    assert store.keys.verify(key).user_limits == expected


def test_the_use_of_a_key_is_written_down_to_the_minute(reopen: OpenStore, clock: Clock) -> None:
    store = reopen(clock=clock)
    key, info = store.keys.mint("laptop")
    store.keys.verify(key)
    first_s = clock()
    clock.advance(LAST_USED_RESOLUTION_S - 1)
    store.keys.verify(key)
    assert store.keys.get(info.id).last_used_at == first_s
    clock.advance(2)
    store.keys.verify(key)
    assert reopen(clock=clock).keys.get(info.id).last_used_at == clock()


def test_a_preset_key_of_any_shape_is_accepted_for_the_owner(directory: DataDirectory) -> None:
    store = open_store(directory, preset_key="correct horse battery")
    principal = store.keys.verify("correct horse battery")
    assert (principal.key_id, principal.owner) == ("preset", store.accounts.owner().id)
    with pytest.raises(Unauthorized):
        store.keys.verify("correct horse batterz")
    store.close()


def test_a_short_preset_key_is_refused_without_being_shown(directory: DataDirectory) -> None:
    with pytest.raises(SettingsError, match="at least 16") as caught:
        open_store(directory, preset_key="hunter2")
    assert "hunter2" not in str(caught.value)


def test_keys_minted_from_many_threads_are_all_there(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda index: store.keys.mint(f"k{index}").key, range(40)))
    assert {store.keys.verify(key).name for key in keys} == {f"k{index}" for index in range(40)}


def test_a_key_in_use_while_it_is_revoked_stays_revoked(directory: DataDirectory, fast_switching: None) -> None:
    """Noting the use and revoking both change the key; neither may undo the other."""
    ticks = itertools.count(step=LAST_USED_RESOLUTION_S + 1)
    store = open_store(directory, clock=lambda: next(ticks))
    for _ in range(20):
        key, info = store.keys.mint("busy")
        with ThreadPoolExecutor(4) as pool:
            uses = [pool.submit(store.keys.verify, key) for _ in range(20)]
            store.keys.revoke(info.id)
        assert {type(use.exception()) for use in uses} <= {type(None), Unauthorized}
        with pytest.raises(Unauthorized):
            store.keys.verify(key)
    store.close()


def test_of_200_rotations_at_once_one_wins_and_the_old_key_dies_while_it_is_used(
    directory: DataDirectory, fast_switching: None
) -> None:
    store = open_store(directory)
    key, info = store.keys.mint("busy")
    with ThreadPoolExecutor(200) as pool:
        rotations = [pool.submit(store.keys.rotate, info.id, actor=str(index)) for index in range(200)]
        uses = [pool.submit(store.keys.verify, key) for _ in range(400)]
    won = [rotation.result() for rotation in rotations if rotation.exception() is None]
    assert len(won) == 1
    assert {type(rotation.exception()) for rotation in rotations} == {type(None), Conflict}
    assert {type(use.exception()) for use in uses} <= {type(None), Unauthorized}
    with pytest.raises(Unauthorized, match="revoked"):
        store.keys.verify(key)
    assert store.keys.verify(won[0].key).key_id == won[0].info.id
    store.close()


@pytest.fixture
def fast_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
