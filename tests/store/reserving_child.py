"""Reserves for three requests, settles one, says so, and waits to be killed: DIRECTORY LEDGER_URL."""

import sys
import time
from pathlib import Path

from atlas.directory import DataDirectory
from atlas.settings import LedgerSettings
from atlas.store import open_store
from tests.store.test_usage import reservation, usage

directory = DataDirectory(Path(sys.argv[1])).create()
directory.hold()
store = open_store(directory, settings=LedgerSettings(url=sys.argv[2]))
for name in ("cut", "extended", "answered"):
    store.usage.reserve(reservation(name, tokens=110, prompt_tokens=10, cost=5)).result()
store.usage.extend("extended", tokens=210, cost=9).result()
store.usage.settle(usage("answered", prompt_tokens=10, completion_tokens=30, cost=2)).result()
print("reserved", flush=True)
time.sleep(600)
