"""Names for ids: whose request it was, and through which key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from atlas.store import Store
from atlas.types import User

PLAYGROUND = "playground"  # name of the short-lived keys the playground makes


class Names(NamedTuple):
    users: Mapping[str, str]
    keys: Mapping[str, str]

    def user(self, user_id: str) -> str:
        return self.users.get(user_id) or user_id or "anyone"

    def key(self, key_id: str) -> str:
        return self.keys.get(key_id) or key_id or "signed in"


def names_of(store: Store, owner: str | None) -> Names:
    """Names a viewer may see: everyone's for `owner` None, else one's own. Reads the ledger: call it in a thread."""
    users = store.accounts.users() if owner is None else [store.accounts.get(owner)]
    return Names({user.id: display_name(user) for user in users}, {key.id: key.name for key in store.keys.list(owner)})


def display_name(user: User) -> str:
    return user.username or ("owner (not set up)" if user.role == "owner" else user.id)
