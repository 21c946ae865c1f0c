"""One user's chat beside another's tasks of twenty candidates: time to the first token, and who pays for what.

A real `atlas serve` with the bundled model, its worker and its sandbox. Ada chats, one short streamed request after another with
prompts that nobody has seen; in every second round Grace has tasks of the nano benchmark solved meanwhile, each joined by a test
that nothing passes, so that every attempt is made, and always with some waiting. Time is the client's: from sending the request
to the first piece of text. Afterwards the usage API has to name each request once, as its owner's, with the tokens it was told.

    python -m benchmarks.fairness [--rounds 5] [--chats 20] [--k 20] [--threads 2] [--waiting 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from benchmarks.peers import Peer, atlas
from benchmarks.report import write
from nano.benchmark import load_benchmark
from nano.export import GGUF_NAME, MODEL_DIR
from nano.tasks import Task

CELLS = 16384
PASSWORD = "a long password for a benchmark"
CHAT_TOKENS = 8
TASK_TOKENS = 256
PAUSE_S = 0.05  # between two chats: somebody reads
PATIENCE_S = 120.0
CHAT_ROUTE, TASK_ROUTE = "/v1/chat/completions", "/v1/tasks"


class Chat(NamedTuple):
    """One request as its client saw it; `request_id` and tokens are what the server said."""

    request_id: str
    first_s: float
    tokens: int


class User:
    """A member with a key, and what was asked in the name of it."""

    def __init__(self, peer: Peer, token: str, key: str) -> None:
        url, self.model = peer.url, peer.model
        self.account = httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=60)
        self.api = httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60)
        self.chats: list[Chat] = []
        self.tasks: list[str] = []

    async def close(self) -> None:
        await self.account.aclose()
        await self.api.aclose()

    async def chat(self, prompt: str) -> Chat:
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": CHAT_TOKENS}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        body["reasoning_effort"] = "none"  # else five tokens precede the text
        first_s, started_s = 0.0, time.perf_counter()
        usage: dict[str, int] = {}
        async with self.api.stream("POST", CHAT_ROUTE, json=body) as reply:
            reply.raise_for_status()
            async for line in reply.aiter_lines():
                chunk = json.loads(line[6:]) if line.startswith("data: {") else {}
                if not first_s and any(_text(choice["delta"]) for choice in chunk.get("choices", ())):
                    first_s = time.perf_counter() - started_s
                usage = chunk.get("usage") or usage
        self.chats.append(Chat(reply.headers["x-request-id"], first_s, usage["total_tokens"]))
        return self.chats[-1]

    async def submit(self, task: Task, *, k: int) -> str:
        body = {"task": task.prompt, "tests": _hard(task), "k": k, "max_attempts": 50, "max_tokens": TASK_TOKENS}
        reply = await self.api.post(TASK_ROUTE, json=body)
        self.tasks.append(str(reply.raise_for_status().json()["id"]))
        return self.tasks[-1]

    async def read(self, task_id: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.api.get(f"{TASK_ROUTE}/{task_id}")).raise_for_status().json()
        return found

    async def ended(self) -> list[dict[str, Any]]:
        """All tasks of this user, which are closed by now."""
        return [await self.read(task_id) for task_id in self.tasks]

    async def usage(self) -> list[dict[str, Any]]:
        """Every row of the ledger that is this user's."""
        reply = await self.account.get("/api/usage/export", params={"format": "jsonl"})
        return [json.loads(line) for line in reply.raise_for_status().text.splitlines()]


def _text(delta: dict[str, Any]) -> str:
    return delta.get("content") or delta.get("reasoning_content") or ""


def _hard(task: Task) -> str:
    shown = [f"assert {example.call} == {example.result}" for example in task.visible]
    return "\n".join([*shown, f"assert {task.visible[0].call} == 'what it never returns'"])


def setup_token(stderr: Path) -> str:
    """As the server tells it at its first start."""
    found = re.search(r"/setup\?token=(\S+)", stderr.read_text())
    if found is None:
        raise SystemExit(f"the server offered no set-up: {stderr.read_text()}")
    return found[1]


async def join(peer: Peer, token: str) -> tuple[User, User]:
    """Set the server up, and two members with keys of their own."""
    async with httpx.AsyncClient(base_url=peer.url, timeout=60) as http:

        async def register(token: str, name: str) -> dict[str, str]:
            reply = await http.post("/api/auth/register", json={"token": token, "username": name, "password": PASSWORD})
            return {"authorization": f"Bearer {reply.raise_for_status().json()['access_token']}"}

        owner = await register(token, "owner")

        async def member(name: str) -> User:
            invited = await http.post("/api/users/invite", json={}, headers=owner)
            account = await register(invited.raise_for_status().json()["token"], name)
            made = await http.post("/api/keys", json={"name": name}, headers=account)
            return User(peer, account["authorization"].partition(" ")[2], made.raise_for_status().json()["key"])

        return await member("ada"), await member("grace")


class Load:
    """Tasks without pause: whenever one is closed another is submitted, until it is taken off."""

    def __init__(self, user: User, tasks: Sequence[Task], *, k: int, waiting: int) -> None:
        self._user, self._tasks, self._k, self._waiting = user, tasks, k, waiting
        self._open: list[str] = []

    async def put_on(self) -> None:
        """Returns when the first of them is being solved."""
        await self._fill()
        await self._until(lambda states: "running" in states)

    async def keep_on(self) -> None:
        while True:
            self._open = [task_id for task_id in self._open if (await self._user.read(task_id))["state"] != "closed"]
            await self._fill()
            await asyncio.sleep(0.5)

    async def take_off(self) -> None:
        """Returns when all of them are closed."""
        for task_id in self._open:
            await self._user.api.post(f"{TASK_ROUTE}/{task_id}/cancel")
        await self._until(lambda states: set(states) <= {"closed"})

    async def _until(self, is_so: Callable[[list[str]], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not is_so([(await self._user.read(task_id))["state"] for task_id in self._open]):  # noqa: ASYNC110 - over HTTP
                await asyncio.sleep(0.05)

    async def _fill(self) -> None:
        while len(self._open) < self._waiting:
            task = self._tasks[len(self._user.tasks) % len(self._tasks)]
            self._open.append(await self._user.submit(task, k=self._k))


@asynccontextmanager
async def loaded(load: Load) -> AsyncIterator[None]:
    await load.put_on()
    keeping = asyncio.create_task(load.keep_on())
    try:
        yield
    finally:
        keeping.cancel()
        [ended] = await asyncio.gather(keeping, return_exceptions=True)
        await load.take_off()
    if isinstance(ended, Exception):
        raise ended


class Counted(NamedTuple):
    """What the engine has done since it started."""

    at_s: float
    tokens: float
    steps: float
    step_s: float

    def since(self, before: Counted) -> Counted:
        return Counted(*(now - then for now, then in zip(self, before, strict=True)))


async def counted(user: User) -> Counted:
    text = (await user.api.get("/metrics")).text
    names = ("generated_tokens", "steps", "step_seconds")
    found = [re.search(rf"^atlas_engine_{name}_total\S* (\S+)$", text, re.MULTILINE) for name in names]
    return Counted(time.perf_counter(), *(float(match[1]) if match else 0.0 for match in found))


class Round(NamedTuple):
    """Times to the first token, what the engine did meanwhile, and the machine's load."""

    first_s: list[float]
    engine: Counted
    load: float


async def chat_round(ada: User, prompts: Sequence[str]) -> Round:
    found, before = [], await counted(ada)
    for prompt in prompts:
        found.append((await ada.chat(prompt)).first_s)
        await asyncio.sleep(PAUSE_S)
    return Round(found, (await counted(ada)).since(before), os.getloadavg()[0])


def summary(rounds: Sequence[Round]) -> dict[str, float]:
    seconds = [second for each in rounds for second in each.first_s]
    engine = Counted(*map(sum, zip(*(each.engine for each in rounds), strict=True)))
    return {
        "chats": len(seconds),
        "median_ms": statistics.median(seconds) * 1e3,
        "p90_ms": statistics.quantiles(seconds, n=10)[-1] * 1e3,
        "step_ms": engine.step_s / engine.steps * 1e3,
        "busy_share": engine.step_s / engine.at_s,
        "tokens_per_s": engine.tokens / engine.at_s,
        "load": statistics.mean(each.load for each in rounds),
    }


async def measure(ada: User, grace: User, arguments: argparse.Namespace) -> dict[str, Any]:
    """Rounds in turns; every prompt is a task of the benchmark with a number before it."""
    tasks = load_benchmark()
    prompts = iter([f"{number}. {tasks[number % len(tasks)].prompt}" for number in range(10**4)])
    rounds: dict[str, list[Round]] = {"idle": [], "busy": []}

    async def chats() -> Round:
        return await chat_round(ada, [next(prompts) for _ in range(arguments.chats)])

    await chats()  # a warm-up
    for number in range(arguments.rounds):
        rounds["idle"].append(await chats())
        async with loaded(Load(grace, tasks, k=arguments.k, waiting=arguments.waiting)):
            rounds["busy"].append(await chats())
        print(f"round {number + 1} of {arguments.rounds}", flush=True)
    rows = {name: summary(found) for name, found in rounds.items()}
    return {"rows": rows, "ratio_of_medians": rows["busy"]["median_ms"] / rows["idle"]["median_ms"], "tasks": len(grace.tasks)}


async def check_charges(ada: User, grace: User) -> dict[str, Any]:
    """Ada pays for her chats, each once, with the tokens it was told; Grace for her tasks, each that was solved to its end once.

    Raises:
        SystemExit: it is not so.
    """
    return {
        "chats": chats_charged(ada.chats, await ada.usage()),
        "tasks": tasks_charged(await grace.ended(), await grace.usage()),
    }


def chats_charged(chats: Sequence[Chat], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    told = {chat.request_id: chat.tokens for chat in chats}
    charged = {row["request_id"]: row.get("prompt_tokens", 0) + row.get("completion_tokens", 0) for row in rows}
    if len(rows) != len(told) or charged != told or {row["route"] for row in rows} != {CHAT_ROUTE}:
        raise SystemExit(f"chats were charged otherwise than told: {set(charged.items()) ^ set(told.items())}")
    return {"rows": len(rows), "queue_median_ms": statistics.median(row.get("queue_s", 0.0) for row in rows) * 1e3}


def tasks_charged(tasks: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A task that was cancelled has one row for each delivery that had begun to generate."""
    of_task = {task["id"]: [row for row in rows if row["request_id"].startswith(task["id"])] for task in tasks}
    if len({row["request_id"] for row in rows}) != len(rows) or sum(map(len, of_task.values())) != len(rows):
        raise SystemExit(f"rows that belong to no task, or to two: {rows}")
    for task in tasks:
        found = [row.get("completion_tokens", 0) for row in of_task[task["id"]]]
        is_done = task["outcome"] == "done"
        if len(found) > task["num_deliveries"] or (is_done and found != [task["result"]["num_tokens"]]):
            raise SystemExit(f"task {task['id']} was charged {found}, and is {task}")
    states = [row["state"] for row in rows]
    tokens = sum(row.get("completion_tokens", 0) for row in rows)
    return {"rows": len(rows), "tasks": len(tasks), "tokens": tokens, **{state: states.count(state) for state in set(states)}}


async def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    home = folder / "home"
    with atlas(MODEL_DIR / GGUF_NAME, home, threads=arguments.threads, cells=CELLS, ATLAS_ENGINE_EMBEDDER="off") as peer:
        ada, grace = await join(peer, setup_token(folder / "home.stderr"))
        try:
            found = await measure(ada, grace, arguments)
            return found | {"charges": await check_charges(ada, grace)}
        finally:
            await ada.close()
            await grace.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 5), ("chats", 20), ("k", 20), ("threads", 2), ("waiting", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(run(arguments, Path(folder)))
    for name, row in found["rows"].items():
        figures = "  ".join(f"{figure} {value:.1f}" for figure, value in row.items())
        print(f"{name}: {figures}")
    print(f"ratio of medians {found['ratio_of_medians']:.2f}; {found['tasks']} tasks; charges {found['charges']}")
    write("fairness", {"arguments": vars(arguments), **found})


if __name__ == "__main__":
    main()
