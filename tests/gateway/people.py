"""People of a test: an owner, an admin, members, and how they sign in."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from atlas.store import OpenedSession, Store
from atlas.types import User, UserRole

PASSWORD = "correct horse battery"


@dataclass(frozen=True)
class People:
    """One of each role, and a second member."""

    owner: User
    admin: User
    member: User
    other: User


def settle(store: Store) -> People:
    """Complete set-up and register everybody. About 25 ms each: passwords are really hashed."""
    token = store.accounts.setup_token()
    assert token is not None
    owner = store.accounts.complete_setup(token, username="olga", email="olga@example.org", password=PASSWORD, source="")
    return People(
        owner, join(store, owner, "anna", "admin"), join(store, owner, "mara", "member"), join(store, owner, "otto", "member")
    )


def join(store: Store, owner: User, username: str, role: UserRole) -> User:
    invitation = store.accounts.invite(actor=owner.id, role=role)
    return store.accounts.register(
        invitation.token, username=username, email=f"{username}@example.org", password=PASSWORD, source=""
    )


def token_of(store: Store, user: User) -> str:
    """An access token."""
    return store.sessions.issue(user, source="").access


def bearer(credential: str) -> dict[str, str]:
    return {"authorization": f"Bearer {credential}"}


def browser(url: str, opened: OpenedSession) -> httpx.Client:
    """A browser signed in with this session, on one of our own pages."""
    headers = {"cookie": f"atlas={opened.token}", "sec-fetch-site": "same-origin", "x-csrf-token": opened.session.csrf}
    return httpx.Client(base_url=url, headers=headers, timeout=60)


def signed_in(url: str, store: Store, user: User) -> httpx.Client:
    """A program with an access token."""
    return httpx.Client(base_url=url, headers=bearer(token_of(store, user)), timeout=60)
