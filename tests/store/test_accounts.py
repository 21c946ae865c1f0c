from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import argon2
import pytest

from atlas.directory import DataDirectory
from atlas.errors import AtlasError, BadRequest, Conflict, NotFound, TooManyAttempts, Unauthorized
from atlas.settings import AuthSettings
from atlas.store import Store
from atlas.store.accounts import RESET_TOKEN_S, SETUP_TOKEN_S
from atlas.store.throttle import PAIR_LIMIT
from atlas.types import Limits, User
from tests.store.conftest import PASSWORD, SOURCE, Clock, OpenStore, add_user, set_up

OTHER_PASSWORD = "another long password"


def outcomes(work: Callable[[int], User], times: int) -> tuple[list[User], list[BaseException]]:
    with ThreadPoolExecutor(times) as pool:
        futures = [pool.submit(work, index) for index in range(times)]
    errors = [error for future in futures if (error := future.exception())]
    return [future.result() for future in futures if not future.exception()], errors


# -- set-up ----------------------------------------------------------------------------------------------------------------


def test_a_new_ledger_has_an_owner_without_a_name(store: Store) -> None:
    owner = store.accounts.owner()
    assert (owner.username, owner.role, owner.is_ready) == ("", "owner", False)
    assert store.accounts.setup_pending()


def test_set_up_completes_the_owner_account_that_the_first_key_belongs_to(reopen: OpenStore) -> None:
    store = reopen()
    key = store.keys.mint("first key").key
    owner = set_up(store)
    assert (owner.username, owner.role, owner.is_ready) == ("ana", "owner", True)
    assert store.keys.verify(key).username == "ana"
    assert store.accounts.setup_token() is None
    again = reopen()
    assert again.accounts.owner() == owner
    assert again.accounts.authenticate("ana", PASSWORD, source=SOURCE) == owner


def test_of_200_set_ups_at_once_one_wins(store: Store) -> None:
    token = store.accounts.setup_token() or ""

    def complete(index: int) -> User:
        return store.accounts.complete_setup(token, username=f"user{index}", email="", password=PASSWORD, source=str(index))

    winners, errors = outcomes(complete, 200)
    assert len(winners) == 1
    assert {type(error) for error in errors} <= {Conflict, Unauthorized}
    assert store.accounts.users() == winners


def test_only_the_latest_setup_token_works_and_only_for_half_an_hour(reopen: OpenStore, clock: Clock) -> None:
    store = reopen(clock=clock)
    first, second = store.accounts.setup_token() or "", store.accounts.setup_token() or ""
    values = {"username": "ana", "email": "", "password": PASSWORD, "source": SOURCE}
    with pytest.raises(Unauthorized, match="unknown, used or expired"):
        store.accounts.complete_setup(first, **values)
    clock.advance(SETUP_TOKEN_S)
    with pytest.raises(Unauthorized):
        store.accounts.complete_setup(second, **values)
    assert store.accounts.setup_pending()


def test_set_up_happens_once(store: Store) -> None:
    set_up(store)
    with pytest.raises(Conflict, match="set up already"):
        store.accounts.complete_setup("any", username="eve", email="", password=PASSWORD, source=SOURCE)


def test_guessing_set_up_tokens_is_throttled(store: Store) -> None:
    for _ in range(PAIR_LIMIT):
        with pytest.raises(Unauthorized):
            store.accounts.complete_setup("guess", username="eve", email="", password=PASSWORD, source=SOURCE)
    with pytest.raises(TooManyAttempts):
        store.accounts.complete_setup("guess", username="eve", email="", password=PASSWORD, source=SOURCE)


def test_no_token_or_password_is_in_the_files(directory: DataDirectory, reopen: OpenStore) -> None:
    store = reopen()
    setup = store.accounts.setup_token() or ""
    store.accounts.complete_setup(setup, username="ana", email="", password=PASSWORD, source=SOURCE)
    owner = store.accounts.owner()
    invitation = store.accounts.invite(actor=owner.id).token
    reset = store.accounts.reset_token(owner.id, actor=owner.id)
    store.close()
    kept = b"".join(path.read_bytes() for path in directory.path.rglob("*") if path.is_file())
    assert not [secret for secret in (setup, invitation, reset, PASSWORD) if secret.encode() in kept]


# -- invitations -----------------------------------------------------------------------------------------------------------


def test_an_invitation_makes_one_account_with_its_role_and_address(store: Store) -> None:
    owner = set_up(store)
    invitation = store.accounts.invite(actor=owner.id, role="admin", email="bob@example.org")
    assert [(known.id, known.token) for known in store.accounts.invitations()] == [(invitation.id, "")]
    bob = store.accounts.register(invitation.token, username="bob", email="", password=PASSWORD, source=SOURCE)
    assert (bob.role, bob.email) == ("admin", "bob@example.org")
    assert store.accounts.invitations() == []
    with pytest.raises(Unauthorized):
        store.accounts.register(invitation.token, username="bob2", email="", password=PASSWORD, source=SOURCE)


def test_of_50_registrations_with_one_invitation_one_wins(store: Store) -> None:
    token = store.accounts.invite(actor=set_up(store).id).token

    def register(index: int) -> User:
        return store.accounts.register(token, username=f"user{index}", email="", password=PASSWORD, source=str(index))

    winners, errors = outcomes(register, 50)
    assert len(winners) == 1
    assert {type(error) for error in errors} == {Unauthorized}
    assert len(store.accounts.users()) == 2


def test_an_invitation_can_be_withdrawn_and_expires(reopen: OpenStore, clock: Clock) -> None:
    store = reopen(clock=clock, auth=AuthSettings(invitation_s=100.0))
    withdrawn, expired = (store.accounts.invite(actor="test") for _ in range(2))
    store.accounts.withdraw_invitation(withdrawn.id, actor="test")
    with pytest.raises(NotFound):
        store.accounts.withdraw_invitation(withdrawn.id, actor="test")
    clock.advance(100)
    assert store.accounts.invitations() == []
    for invitation in (withdrawn, expired):
        with pytest.raises(Unauthorized, match="new invitation"):
            store.accounts.register(invitation.token, username="bob", email="", password=PASSWORD, source=SOURCE)


def test_a_token_opens_only_what_it_was_made_for(store: Store) -> None:
    setup = store.accounts.setup_token() or ""
    with pytest.raises(Unauthorized):
        store.accounts.register(setup, username="bob", email="", password=PASSWORD, source=SOURCE)
    with pytest.raises(Unauthorized):
        store.accounts.reset_password(setup, PASSWORD, source=SOURCE)


@pytest.mark.parametrize(("username", "email", "param"), [("ANA", "", "username"), ("bob", "ANA@example.org", "email")])
def test_names_and_addresses_are_unique_whatever_their_case(store: Store, username: str, email: str, param: str) -> None:
    invitation = store.accounts.invite(actor=set_up(store).id)
    with pytest.raises(Conflict) as caught:
        store.accounts.register(invitation.token, username=username, email=email, password=PASSWORD, source=SOURCE)
    assert caught.value.param == param
    store.accounts.register(invitation.token, username="bob", email="", password=PASSWORD, source=SOURCE)  # not used up


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"username": "ab"}, "username"),
        ({"username": "a" * 51}, "username"),
        ({"username": "ana maria"}, "username"),
        ({"username": "a@b"}, "username"),
        ({"email": "nobody"}, "email"),
        ({"email": "a@b@c"}, "email"),
        ({"email": "a\0@example.org"}, "email"),
        ({"email": "a@" + "b" * 300}, "email"),
        ({"password": "x" * 11}, "password"),
        ({"password": "x" * 1025}, "password"),
    ],
)
def test_what_does_not_fit_is_named_and_a_password_not_repeated(store: Store, values: dict[str, str], param: str) -> None:
    token = store.accounts.setup_token() or ""
    given = {"username": "ana", "email": "", "password": PASSWORD, **values}
    with pytest.raises(BadRequest) as caught:
        store.accounts.complete_setup(token, **given, source=SOURCE)
    assert caught.value.param == param
    assert given["password"] not in caught.value.message
    assert store.accounts.setup_pending()


# -- signing in ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("login", ["ana", "ANA", "ana@example.org", " Ana@Example.ORG "])
def test_a_name_or_an_address_in_any_case_signs_in(store: Store, login: str) -> None:
    owner = set_up(store)
    assert store.accounts.authenticate(login, PASSWORD, source=SOURCE) == owner


def test_unknown_wrong_and_disabled_look_the_same_and_cost_one_hash_each(store: Store) -> None:
    set_up(store)
    bob = add_user(store)
    store.accounts.update(bob.id, actor="test", disabled=True)
    attempts = [("ana", OTHER_PASSWORD), ("nobody", PASSWORD), ("bob", PASSWORD), ("", ""), ("nobody", "x" * 5000)]
    messages = set()
    real = argon2.PasswordHasher.verify
    with patch.object(argon2.PasswordHasher, "verify", autospec=True, side_effect=real) as verify:
        for login, password in attempts:
            with pytest.raises(Unauthorized) as caught:
                store.accounts.authenticate(login, password, source=SOURCE)
            messages.add(caught.value.message)
    assert len(messages) == 1
    assert verify.call_count == len(attempts)


def test_too_many_failures_are_refused_before_hashing(store: Store) -> None:
    set_up(store)
    for _ in range(PAIR_LIMIT):
        with pytest.raises(Unauthorized):
            store.accounts.authenticate("ana", OTHER_PASSWORD, source=SOURCE)
    with patch.object(argon2.PasswordHasher, "verify", autospec=True) as verify, pytest.raises(TooManyAttempts) as caught:
        store.accounts.authenticate("ana", PASSWORD, source=SOURCE)
    assert not verify.called
    assert caught.value.retry_after_s is not None
    assert store.accounts.authenticate("ana", PASSWORD, source="192.0.2.99").username == "ana"


def test_guessing_in_many_threads_gains_at_most_one_guess(store: Store) -> None:
    """Two are hashed at a time, so the tenth and the eleventh may be checked side by side."""
    set_up(store)
    _, errors = outcomes(lambda _: store.accounts.authenticate("ana", OTHER_PASSWORD, source=SOURCE), 60)
    kinds = [type(error) for error in errors]
    assert PAIR_LIMIT <= kinds.count(Unauthorized) <= PAIR_LIMIT + 1
    assert kinds.count(TooManyAttempts) == 60 - kinds.count(Unauthorized)


def test_many_right_sign_ins_at_once_are_not_throttled(store: Store) -> None:
    set_up(store)
    users, errors = outcomes(lambda _: store.accounts.authenticate("ana", PASSWORD, source=SOURCE), 30)
    assert (len(users), errors) == (30, [])


def test_a_hash_of_other_parameters_is_replaced_at_sign_in(store: Store) -> None:
    old = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    owner = set_up(store)
    account = store.accounts.account(owner.id)
    store.accounts._accounts[owner.id] = account._replace(password=old.hash(PASSWORD))
    store.accounts.authenticate("ana", PASSWORD, source=SOURCE)
    assert "m=19456,t=2,p=1" in (store.accounts.account(owner.id).password or "")
    store.accounts.authenticate("ana", PASSWORD, source=SOURCE)


def test_a_password_can_be_changed_by_who_knows_it(store: Store) -> None:
    owner = set_up(store)
    with pytest.raises(Unauthorized):
        store.accounts.change_password(owner.id, OTHER_PASSWORD, "a third long password", source=SOURCE)
    store.accounts.change_password(owner.id, PASSWORD, OTHER_PASSWORD, source=SOURCE)
    with pytest.raises(Unauthorized):
        store.accounts.authenticate("ana", PASSWORD, source=SOURCE)
    store.accounts.authenticate("ana", OTHER_PASSWORD, source=SOURCE)


def test_a_reset_token_changes_the_password_once(store: Store) -> None:
    owner = set_up(store)
    first, second = (store.accounts.reset_token(owner.id, actor="cli") for _ in range(2))
    with pytest.raises(Unauthorized):
        store.accounts.reset_password(first, OTHER_PASSWORD, source=SOURCE)
    assert store.accounts.reset_password(second, OTHER_PASSWORD, source=SOURCE) == owner
    with pytest.raises(Unauthorized):
        store.accounts.reset_password(second, PASSWORD, source=SOURCE)
    store.accounts.authenticate("ana", OTHER_PASSWORD, source=SOURCE)


def test_a_reset_token_expires_and_is_not_for_disabled_users(reopen: OpenStore, clock: Clock) -> None:
    store = reopen(clock=clock)
    set_up(store)
    bob = add_user(store)
    token = store.accounts.reset_token(bob.id, actor="cli")
    store.accounts.update(bob.id, actor="cli", disabled=True)
    with pytest.raises(Unauthorized, match="disabled"):
        store.accounts.reset_password(token, OTHER_PASSWORD, source=SOURCE)
    store.accounts.update(bob.id, actor="cli", disabled=False)
    clock.advance(RESET_TOKEN_S)
    with pytest.raises(Unauthorized):
        store.accounts.reset_password(token, OTHER_PASSWORD, source=SOURCE)


# -- administration --------------------------------------------------------------------------------------------------------


def test_the_last_enabled_owner_cannot_be_lost(store: Store) -> None:
    ana = set_up(store)
    bob = add_user(store)
    for change in ({"role": "member"}, {"disabled": True}):
        with pytest.raises(Conflict, match="only owner"):
            store.accounts.update(ana.id, actor="test", **change)
    store.accounts.update(bob.id, actor="test", role="owner")
    store.accounts.update(ana.id, actor="test", role="member")
    assert store.accounts.owner().id == bob.id


def test_of_two_owners_who_demote_each_other_one_stays(store: Store) -> None:
    owners = [set_up(store).id, add_user(store, role="owner").id] * 10
    outcomes(lambda index: store.accounts.update(owners[index], actor="test", role="member"), 20)
    assert [user.role for user in store.accounts.users()].count("owner") == 1


def test_changes_are_there_after_reopening(reopen: OpenStore, clock: Clock) -> None:
    store = reopen(clock=clock)
    set_up(store)
    bob = add_user(store)
    limits = Limits(tokens_per_day=1000, cost_per_month=5)
    changed = store.accounts.update(bob.id, actor="test", role="admin", limits=limits, email="b@example.org", disabled=True)
    assert (changed.role, changed.limits, changed.email, changed.disabled_at) == ("admin", limits, "b@example.org", clock())
    assert reopen(clock=clock).accounts.get(bob.id) == changed


def test_an_unknown_user_is_named(store: Store) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.accounts.get("usr_nope"),
        lambda: store.accounts.update("usr_nope", actor="test"),
        lambda: store.accounts.reset_token("usr_nope", actor="test"),
    ]
    for call in calls:
        with pytest.raises(NotFound, match="usr_nope"):
            call()


def test_a_change_that_does_not_fit_changes_nothing(store: Store) -> None:
    ana = set_up(store)
    bob = add_user(store)
    for values in ({"limits": Limits(concurrency=0)}, {"email": "ana@example.org"}, {"email": "nobody"}):
        with pytest.raises(AtlasError):
            store.accounts.update(bob.id, actor=ana.id, **values)
    assert store.accounts.get(bob.id) == bob
