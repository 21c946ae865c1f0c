"""What must survive a restart: the ledger (SQL) and the data directory around it.

One process opens the ledger, under the directory's lock; every write goes through one thread. API keys are kept as keyed hashes
only, and are verified from memory.
"""

from atlas.store.directory import DataDirectory
from atlas.store.keys import KeyInfo, MintedKey
from atlas.store.store import Store, open_store

__all__ = ["DataDirectory", "KeyInfo", "MintedKey", "Store", "open_store"]
