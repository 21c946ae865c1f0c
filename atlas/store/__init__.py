"""What must survive a restart: the ledger (SQL) and the data directory around it.

One process opens the ledger, under the directory's lock; every write goes through one thread. Keys, passwords and tokens are kept
as hashes only; keys and sessions are verified from memory.
"""

from atlas.store.access import Tokens
from atlas.store.accounts import Invitation
from atlas.store.audit import AuditEntry, Change
from atlas.store.directory import DataDirectory
from atlas.store.keys import KeyInfo, MintedKey
from atlas.store.rules import DEFAULT_SCOPES
from atlas.store.sessions import OpenedSession, Session
from atlas.store.store import Store, open_store

__all__ = [
    "DEFAULT_SCOPES",
    "AuditEntry",
    "Change",
    "DataDirectory",
    "Invitation",
    "KeyInfo",
    "MintedKey",
    "OpenedSession",
    "Session",
    "Store",
    "Tokens",
    "open_store",
]
