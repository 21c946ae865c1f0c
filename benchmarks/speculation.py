"""What guessing ahead brings: one engine with `engine.speculation`, one without, the same file, in turns, inside this process.

  edit          "copyist", a scripted model whose 12 layers cost what those of 60 M parameters do. The prompt holds a text of 300
                tokens in which every so many (--edit-every) one is another; the answer is the text as it should be. n-grams find
                it in the prompt, and lose it for two tokens after every change.
  edit, draft   the same with a draft of 2 layers that is right four times of five.
  nano greedy   tasks of the nano benchmark, as the platform asks them, one answer each, temperature 0
  nano sampled  the same at temperature 0.8 with a seed each
  nano best of  the same, one task at a time, as many candidates as there are streams

A round asks for `streams` answers at once; a rate is generated tokens per second of the round, prompts included. The ratio is the
geometric mean over rounds, its lower bound one-sided at 95 % by Student's t over logarithms. Greedy answers are compared: "other"
are those that differ at a token whose two best were 0.002 or more apart without guesses.

With --step-ms every forward pass takes at least so long, however many rows it has (slow_step.c): the costs of a GPU.

    python -m benchmarks.speculation [--rounds 8] [--threads 1] [--streams 1 2 4 8] [--loads ...] [--step-ms 30]
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from atlas import bench
from atlas.engine import Engine, load_engine
from atlas.settings import EngineSettings
from atlas.types import Generation, Prompt, Sampling
from benchmarks import models, solve
from benchmarks.engine import T95
from benchmarks.report import write
from benchmarks.solvers import messages_of, one_attempt
from nano.export import GGUF_NAME, MODEL_DIR

CELLS = 16384
GAP = 2e-3
GREEDY = (Sampling(temperature=0.0),)
LOADS = ("edit", "edit, draft", "nano greedy", "nano sampled", "nano best of")


class Load(NamedTuple):
    """What is asked of which model: the prompts of a round, by its number and the number of streams."""

    model: Path
    settings: dict[str, Any]
    prompts: Callable[[int, int], list[Prompt]]


class Round(NamedTuple):
    """Answers to a round's prompts, and how many tokens came a second."""

    rate: float
    answers: list[Generation]


async def loads(names: list[str], folder: Path, *, edit_every: int) -> dict[str, Load]:
    copyist = models.copyist(folder)
    suite = bench.load_suite("nano")
    tasks = [await messages_of(one_attempt(task, 1, seed=1)) for task in suite.tasks]
    rng = random.Random(0)
    rng.shuffle(tasks)

    def edits(number: int, streams: int) -> list[Prompt]:
        texts = [edited(copyist.text, edit_every, seed=(number, at)) for at in range(streams)]
        return [Prompt(tokens=text, max_tokens=280, sampling=GREEDY) for text in texts]

    def task(sampling: Callable[[int], Sampling], number: int, streams: int) -> list[Prompt]:
        chosen = [tasks[(number * streams + at) % len(tasks)] for at in range(streams)]
        return [
            Prompt(messages=messages, max_tokens=256, sampling=(sampling(number),), top_logprobs=None if sampling is warm else 2)
            for messages in chosen
        ]

    def best_of(number: int, streams: int) -> list[Prompt]:
        return [Prompt(messages=tasks[number % len(tasks)], max_tokens=256, sampling=(warm(number),), n=streams)]

    nano = MODEL_DIR / GGUF_NAME
    found = {
        "edit": Load(copyist.model, {"speculation": "ngram"}, edits),
        "edit, draft": Load(copyist.model, {"speculation": "draft", "draft_model": str(copyist.draft)}, edits),
        "nano greedy": Load(nano, {"speculation": "ngram"}, lambda number, streams: task(lambda _: GREEDY[0], number, streams)),
        "nano sampled": Load(nano, {"speculation": "ngram"}, lambda number, streams: task(warm, number, streams)),
        "nano best of": Load(nano, {"speculation": "ngram"}, best_of),
    }
    return {name: found[name] for name in names}


def warm(seed: int) -> Sampling:
    return Sampling(temperature=0.8, top_p=0.95, top_k=20, seed=seed)


def edited(text: tuple[int, ...], every: int, *, seed: tuple[int, int]) -> tuple[int, ...]:
    """A prompt of its own (nothing of it is found in the prefix cache): a text in which some are others."""
    rng = random.Random(str(seed))
    head = f"{seed} ".encode()
    return (*head, *(rng.randrange(97, 123) if rng.random() < 1 / every else token for token in text), ord("?"))


async def asked(engine: Engine, prompts: list[Prompt]) -> Round:
    start_s = time.perf_counter()
    groups = [await engine.submit(prompt) for prompt in prompts]
    answers = [answer for group in groups for answer in await group.all()]
    return Round(sum(answer.num_tokens for answer in answers) / (time.perf_counter() - start_s), answers)


@asynccontextmanager
async def opened(load: Load, *, threads: int) -> Any:
    """An engine without guesses, and one with them."""
    async with AsyncExitStack() as stack:
        engines = []
        for settings in ({"speculation": "off"}, load.settings):
            chosen = EngineSettings(context_tokens=CELLS, threads=threads, embedder="off", host_cache_tokens=0, **settings)
            engines.append(await load_engine(load.model, model_id="m", settings=chosen))
            stack.push_async_callback(engines[-1].close)
        yield engines


async def measured(load: Load, streams: int, *, rounds: int, threads: int) -> dict[str, Any]:
    rates: list[list[float]] = [[], []]
    num_answers = num_unlike = num_other = 0
    async with opened(load, threads=threads) as engines:
        for engine in engines:
            await asked(engine, load.prompts(1000, streams))
        before = engines[1].stats()
        for number in range(rounds):
            prompts = load.prompts(number, streams)
            turn = [0, 1] if number % 2 else [1, 0]
            found = {which: await asked(engines[which], prompts) for which in turn}
            for which in turn:
                rates[which].append(found[which].rate)
            if prompts[0].top_logprobs is not None or prompts[0].sampling == GREEDY:
                for alone, other in zip(found[0].answers, found[1].answers, strict=True):
                    num_answers += 1
                    num_unlike += alone.tokens != other.tokens
                    num_other += not is_same_up_to_ties(alone, other)
        after = engines[1].stats()
    drafted, accepted = after.drafted_tokens - before.drafted_tokens, after.accepted_tokens - before.accepted_tokens
    compared = {"answers": num_answers, "unlike": num_unlike, "other": num_other}
    steps = (after.generated_tokens - before.generated_tokens) / max(1, after.steps - before.steps)
    return {**summary(rates[0], rates[1]), "drafted": drafted, "accepted": accepted, "tokens_per_step": steps, **compared}


def is_same_up_to_ties(alone: Generation, other: Generation) -> bool:
    for at, (one, another) in enumerate(zip(alone.tokens, other.tokens, strict=False)):
        if one != another:
            top = alone.logprobs[at].top if alone.logprobs else ()
            return len(top) > 1 and top[0][2] - top[1][2] < GAP
    return len(alone.tokens) == len(other.tokens)


def summary(without: list[float], with_guesses: list[float]) -> dict[str, Any]:
    logs = [math.log(b / a) for a, b in zip(without, with_guesses, strict=True)]
    num = len(logs)
    spread = T95[min(num, len(T95)) - 1] * statistics.stdev(logs) / math.sqrt(num) if num > 1 else math.inf
    return {
        "off": statistics.median(without),
        "on": statistics.median(with_guesses),
        "ratio": math.exp(statistics.mean(logs)),
        "lower": math.exp(statistics.mean(logs) - spread),
        "rounds": {"off": without, "on": with_guesses},
    }


def lines(name: str, streams: int, row: dict[str, Any]) -> Iterator[str]:
    share = row["accepted"] / row["drafted"] if row["drafted"] else 0.0
    yield (
        f"{name:<13} {streams:>2} streams   off {row['off']:7.1f} tok/s   on {row['on']:7.1f}   ratio {row['ratio']:.2f}, at"
        f" least {row['lower']:.2f}   {row['drafted']:>6} drafted, {share:4.0%} right, {row['tokens_per_step']:.2f} tokens a step"
        f"   {row['answers']} compared, {row['unlike']} unlike, {row['other']} other"
    )


async def run(arguments: argparse.Namespace, report: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, load in (await loads(arguments.loads, Path(folder), edit_every=arguments.edit_every)).items():
            for streams in arguments.streams:
                row = await measured(load, streams, rounds=arguments.rounds, threads=arguments.threads)
                report["loads"].append({"load": name, "streams": streams, **row})
                print(*lines(name, streams, row), sep="\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 8), ("threads", 1), ("edit-every", 25), ("step-ms", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    arguments = parser.parse_args()
    if arguments.step_ms:
        os.environ["SLOW_STEP_MS"] = str(arguments.step_ms)
        solve.preload("benchmarks.speculation")
    report: dict[str, Any] = {"arguments": vars(arguments), "load": [os.getloadavg()[0]], "loads": []}
    asyncio.run(run(arguments, report))
    report["load"].append(os.getloadavg()[0])
    write("speculation", report)


if __name__ == "__main__":
    main()
