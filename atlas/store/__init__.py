"""What must survive a restart: the ledger (SQL) and the data directory around it.

One process opens the ledger, under the directory's lock; every write goes through one thread. Keys, passwords and tokens are kept
as hashes only; keys and sessions are verified from memory. Long jobs are kept in the journal: submitted once, closed once.
"""

from atlas.store.access import Tokens
from atlas.store.accounts import Invitation
from atlas.store.audit import AuditEntry, Change
from atlas.store.backup import restore_backup, write_backup
from atlas.store.journal import Journal, open_journal
from atlas.store.journal_values import (
    LAST_NUMBER,
    Delivery,
    Ending,
    Finish,
    Lease,
    Outcome,
    Quota,
    Standing,
    Submission,
    Submitted,
    Task,
    TaskClosed,
    TaskEvent,
    TaskFilter,
    TaskPage,
    TaskState,
    TaskStats,
)
from atlas.store.keys import KeyInfo, MintedKey
from atlas.store.live import Live, open_live
from atlas.store.live_values import Ask, Budget, Counts, Grant, Remaining, Window
from atlas.store.operations import OPERATIONS, run_operation
from atlas.store.reports import Reservation, Spent, UsageTotal
from atlas.store.responses import KeptResponse, KeptResponses
from atlas.store.rules import DEFAULT_SCOPES
from atlas.store.sessions import OpenedSession, Session
from atlas.store.store import Store, open_store
from atlas.store.written import Written

__all__ = [
    "DEFAULT_SCOPES",
    "LAST_NUMBER",
    "OPERATIONS",
    "Ask",
    "AuditEntry",
    "Budget",
    "Change",
    "Counts",
    "Delivery",
    "Ending",
    "Finish",
    "Grant",
    "Invitation",
    "Journal",
    "KeptResponse",
    "KeptResponses",
    "KeyInfo",
    "Lease",
    "Live",
    "MintedKey",
    "OpenedSession",
    "Outcome",
    "Quota",
    "Remaining",
    "Reservation",
    "Session",
    "Spent",
    "Standing",
    "Store",
    "Submission",
    "Submitted",
    "Task",
    "TaskClosed",
    "TaskEvent",
    "TaskFilter",
    "TaskPage",
    "TaskState",
    "TaskStats",
    "Tokens",
    "UsageTotal",
    "Window",
    "Written",
    "open_journal",
    "open_live",
    "open_store",
    "restore_backup",
    "run_operation",
    "write_backup",
]
