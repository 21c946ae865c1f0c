"""A worker for the journal's stress test, to be killed and stopped: SOCKET NAME LOG LEASE_S.

Writes to its log, a line each, what it was told: "finish TASK DELIVERY closed", "step TASK DELIVERY" before it does the step and
"kept TASK DELIVERY" once it was told that this is kept.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.store.journal_protocol import Client, Unreachable

path, name, log_path, lease_s = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])
log = log_path.open("a", buffering=1, encoding="utf-8")
client, pulse = Client(path), Client(path)


def beat(delivery: dict[str, Any], over: threading.Event) -> None:
    while not over.wait(lease_s / 3):
        try:
            if pulse.call("heartbeat", delivery=delivery, timeout_s=2.0) == "lost":
                return
        except Unreachable:
            continue


def note(what: str, delivery: dict[str, Any], more: str = "") -> None:
    log.write(f"{time.time():.6f} {what} {delivery['task_id']} {delivery['number']} {more}\n")


def work(delivery: dict[str, Any]) -> None:
    if "half" not in client.insist("steps", task_id=delivery["task_id"]):
        note("step", delivery)
        time.sleep(random.uniform(0.0, 0.02))
        if client.insist("put_step", delivery=delivery):
            note("kept", delivery)
    client.insist("put_event", delivery=delivery)
    time.sleep(random.uniform(0.0, 0.06))
    note("finish", delivery, client.insist("finish", delivery=delivery, result=f"{delivery['number']} {name}"))


while True:
    try:
        lease = client.call("lease", worker=name)
    except Unreachable:
        time.sleep(0.05)
        continue
    if lease is None:
        continue
    over = threading.Event()
    heart = threading.Thread(target=beat, args=(lease["delivery"], over))
    heart.start()
    work(lease["delivery"])
    over.set()
    heart.join()
