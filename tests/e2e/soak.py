"""Many clients at once, and what must hold meanwhile: no error but an honest refusal, no cross-talk, nothing left behind."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.conftest import KEY, Running

NUM_CLIENTS = 32
MAX_TOKENS = 48
GAP = 2e-3  # nats between a solo run's two best tokens, below which float order may decide


@dataclass
class Solo:
    """A prompt's greedy answer when it ran alone; `gaps[i]` between the two best at token i (one ASCII character each)."""

    text: str
    gaps: list[float]


@dataclass
class Tally:
    """What the clients saw."""

    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def mismatch_share(self) -> float:
        return self.seen["tie"] / max(1, self.seen["greedy"])


def prompts(rng: random.Random, count: int = 40) -> list[str]:
    """Short and long, many with a common beginning."""
    common = "".join(rng.choices("abcdefgh ", k=1200))
    lengths = [rng.choice((20, 60, 200, 900, 2800)) for _ in range(count)]
    return [
        f"{common[: length // 2] if i % 2 else ''}{i:03d}{''.join(rng.choices('ijklmnop ', k=length // 2))}"
        for i, length in enumerate(lengths)
    ]


async def solo_runs(server: Running, texts: list[str]) -> dict[str, Solo]:
    async with httpx.AsyncClient(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=120) as client:
        return {text: await _solo(client, text) for text in texts}


async def run(server: Running, references: dict[str, Solo], *, seconds: float, seed: int = 0) -> Tally:
    tally, stop_at = Tally(), time.monotonic() + seconds
    async with (
        httpx.AsyncClient(
            base_url=server.url,
            headers={"authorization": f"Bearer {KEY}"},
            timeout=120,
            limits=httpx.Limits(max_connections=None),
        ) as client,
        asyncio.TaskGroup() as group,
    ):
        for number in range(NUM_CLIENTS):
            group.create_task(_client(client, references, tally, random.Random(seed * 1000 + number), stop_at))
    return tally


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def _body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "calm", "prompt": text, "max_tokens": MAX_TOKENS, "temperature": 0, **more}


async def _solo(client: httpx.AsyncClient, text: str) -> Solo:
    answer = (await client.post("/v1/completions", json=_body(text, logprobs=2))).raise_for_status().json()["choices"][0]
    ranked = [sorted(entry.values(), reverse=True) for entry in answer["logprobs"]["top_logprobs"]]
    return Solo(answer["text"], [best - second for best, second, *_ in ranked])


async def _client(
    client: httpx.AsyncClient, references: dict[str, Solo], tally: Tally, rng: random.Random, stop_at: float
) -> None:
    while time.monotonic() < stop_at:
        text, n = rng.choice(list(references)), rng.choice((1, 1, 1, 2, 5, 20))
        kind = rng.choices(("greedy", "sampled", "cancelled"), (6, 2, 2))[0]
        body = _body(text, n=n) if kind != "sampled" else _body(text, n=n, temperature=1.0, seed=rng.randrange(99))
        if kind == "cancelled":
            await _cancel(client, body, tally, rng)
            continue
        answer = await client.post("/v1/completions", json=body)
        if answer.status_code in (429, 503):
            assert int(answer.headers["retry-after"]) >= 1
            tally.seen["refused"] += 1
            await asyncio.sleep(rng.uniform(0.1, 0.5))
        else:
            _judge(answer.raise_for_status().json(), references[text], kind, tally)


async def _cancel(client: httpx.AsyncClient, body: dict[str, Any], tally: Tally, rng: random.Random) -> None:
    """Read a little of a long stream, then close the connection."""
    async with client.stream("POST", "/v1/completions", json={**body, "stream": True, "max_tokens": 1000}) as response:
        if response.status_code in (429, 503):
            tally.seen["refused"] += 1
            return
        wanted = rng.randrange(1, 12)
        async for line in response.aiter_lines():
            wanted -= line.startswith("data:")
            if wanted <= 0:
                break
    tally.seen["cancelled"] += 1


def _judge(answer: dict[str, Any], solo: Solo, kind: str, tally: Tally) -> None:
    for choice in answer["choices"]:
        tally.seen[kind] += 1
        text = choice["text"]
        if kind == "sampled" or text == solo.text:
            continue
        at = next((i for i, (a, b) in enumerate(zip(text, solo.text, strict=False)) if a != b), min(len(text), len(solo.text)))
        if at < len(solo.gaps) and solo.gaps[at] < GAP:
            tally.seen["tie"] += 1
        else:
            gap = solo.gaps[at] if at < len(solo.gaps) else math.inf
            tally.wrong.append(f"at {at}, gap {gap:.4f}: {text[: at + 10]!r} instead of {solo.text[: at + 10]!r}")
