"""The thread that owns the context: takes jobs from a queue, runs steps, hands results to the event loop.

One hand-over to the loop per step, however many tokens it made. Nothing here is called from another thread except `put`, `stats`
and `stop`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable
from typing import NamedTuple

import structlog

from atlas.engine.group import Group
from atlas.engine.runner import Candidates, DecodeResult, Model, Runner
from atlas.engine.sampler import sample
from atlas.engine.scheduler import Part, Scheduler
from atlas.engine.sequence import Job, Sequence, Step
from atlas.errors import AtlasError, EngineFailed, EngineUnavailable
from atlas.types import Delta, EngineStats, Generation

log = structlog.get_logger("atlas.engine")


class Cancel(NamedTuple):
    """Stop these candidates of a job."""

    job: Job
    indices: frozenset[int]


class News(NamedTuple):
    """What a step brought one group."""

    deltas: list[Delta]
    generations: list[Generation]


class Core:
    """Runs jobs on a thread of its own until stopped."""

    def __init__(
        self,
        model: Model,
        runner: Runner,
        *,
        model_id: str,
        max_running: int,
        max_cached: int,
        chunk_tokens: int,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._model, self._runner, self._model_id = model, runner, model_id
        self._loop = loop
        self._scheduler = Scheduler(runner, max_running=max_running, max_cached=max_cached, chunk_tokens=chunk_tokens)
        self._scratch = Candidates(runner.vocab_size)
        self._inbox: deque[Job | Cancel] = deque()
        self._wake = threading.Event()
        self._is_stopping = False
        self._arrivals = 0
        self._live: dict[Job, set[Sequence]] = defaultdict(set)
        self._news: dict[Group, News] = {}
        self._prompt_tokens = self._cached_tokens = self._generated_tokens = self._steps = 0
        self._step_s = self._decode_s = 0.0
        self._cells_live = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def put(self, message: Job | Cancel) -> None:
        self._inbox.append(message)
        self._wake.set()

    def stats(self) -> EngineStats:
        """A snapshot; single attributes are consistent, the set of them nearly so."""
        scheduler = self._scheduler
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=scheduler.num_waiting,
            cells_used=scheduler.cells_used,
            cells_live=self._cells_live,
            cells_total=self._runner.context_tokens,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=scheduler.num_preempted,
            steps=self._steps,
            step_s=self._step_s,
            decode_s=self._decode_s,
        )

    def stop(self) -> None:
        """Abort what runs and end the thread; blocks until it has ended (one step at most)."""
        self._is_stopping = True
        self._runner.abort()
        self._wake.set()
        self._thread.join()

    # -- the engine thread --

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                if not self._inbox and not self._scheduler.has_work:
                    self._wake.wait()
                self._wake.clear()
                self._turn()
            self._fail_all(EngineUnavailable("the server is shutting down", retry_after_s=5))
            self._deliver()
        except BaseException:  # without its engine the process is of no use: the parent starts another
            traceback.print_exc()
            os._exit(70)

    def _turn(self) -> None:
        """Take messages, run one step, hand over what it brought. A failed step fails the jobs in it, not the thread."""
        try:
            self._take_inbox()
            self._drop_late()
            self._step()
        except Exception as error:  # whatever went wrong, every reader must be told, and the log why
            log.error("step.failed", exc_info=error)
            self._fail_all(error if isinstance(error, AtlasError) else EngineFailed(f"engine step failed: {error!r}"))
        self._cells_live = self._scheduler.cells_live
        self._deliver()

    def _take_inbox(self) -> None:
        while self._inbox:
            message = self._inbox.popleft()
            if isinstance(message, Job):
                self._start(message)
            else:
                self._cancel(message)

    def _start(self, job: Job) -> None:
        self._arrivals += 1
        job.arrival = self._arrivals
        self._prompt_tokens += len(job.tokens)
        for index in range(job.prompt.n):
            sequence = Sequence(job, index, self._model.vocab, self._model_id)
            self._live[job].add(sequence)
            self._scheduler.add(sequence)

    def _cancel(self, message: Cancel) -> None:
        for sequence in [s for s in self._live.get(message.job, ()) if s.index in message.indices]:
            self._end(sequence, sequence.finish("abort"))

    def _drop_late(self) -> None:
        for job in [job for job in self._live if job.is_late]:
            self._cancel(Cancel(job, frozenset(range(job.prompt.n))))

    def _step(self) -> None:
        """1) admit  2) decode rows, and prefill rows beside them  3) sample  4) book."""
        started = time.perf_counter()
        self._scheduler.admit()
        plan = self._scheduler.plan()
        if not (plan.decode or plan.prefill):
            return
        if any(part.sequence.job.prompt.features for part in plan.decode):
            # with hidden states on, C makes every row an output: never beside prefill rows
            self._compute(plan.decode, features=True)
            self._compute(plan.prefill)
        else:
            self._compute(plan.decode + plan.prefill)
        self._steps += 1
        self._step_s += time.perf_counter() - started

    def _compute(self, parts: list[Part], *, features: bool = False) -> None:
        if not parts:
            return
        batch = self._runner.batch
        batch.clear()
        for part in parts:
            assert part.sequence.seq_id is not None
            self._announce(part.sequence)
            batch.add(part.sequence.seq_id, part.start, part.tokens, output=part.is_last)
        if not self._decode(features=features):
            return
        for part in parts:
            self._scheduler.computed(part)
        self._sample([part.sequence for part in parts if part.is_last], features=features)

    def _decode(self, *, features: bool) -> bool:
        started = time.perf_counter()
        result = self._runner.decode(features=features)
        self._decode_s += time.perf_counter() - started
        if result is DecodeResult.FULL:
            raise EngineFailed("llama.cpp found no room for rows that were counted to fit")
        return result is DecodeResult.DONE

    def _sample(self, sequences: list[Sequence], *, features: bool) -> None:
        if not sequences:
            return
        if features:
            for sequence, state in zip(sequences, self._runner.states(), strict=True):
                if sequence.job.prompt.features:
                    sequence.note_state(state)
        logits = self._runner.logits()
        wants = [sequence.want(row) for sequence, row in zip(sequences, logits, strict=True)]
        for sequence, (choice, exact) in zip(sequences, sample(logits, wants, self._scratch), strict=True):
            step = sequence.take(choice, exact)
            self._generated_tokens += 1
            if step.generation is not None:
                self._end(sequence, step)
            elif step.delta is not None:
                self._tell(sequence.job.group).deltas.append(step.delta)

    def _announce(self, sequence: Sequence) -> None:
        """The first rows of a candidate, and of its group."""
        if sequence.started_at:
            return
        sequence.started_at = time.monotonic()
        job = sequence.job
        if not job.is_started:
            job.is_started = True
            self._cached_tokens += sequence.num_held
            self._call(job.group.start, sequence.num_held)

    def _end(self, sequence: Sequence, step: Step) -> None:
        """A candidate is done: hand it on, free or keep its cells (of a best-of-k group only the first's)."""
        assert step.delta is not None
        assert step.generation is not None
        news = self._tell(sequence.job.group)
        news.deltas.append(step.delta)
        news.generations.append(step.generation)
        if sequence.seq_id is None:
            self._scheduler.forget(sequence)
        else:
            self._scheduler.retire(sequence, keep=sequence.job.prompt.n == 1 or not sequence.job.is_kept)
            sequence.job.is_kept = True
        self._live[sequence.job].discard(sequence)
        if not self._live[sequence.job]:
            del self._live[sequence.job]

    def _fail_all(self, error: Exception) -> None:
        """Every candidate's group is told; cells are taken back."""
        for sequence in list(self._scheduler.running):
            self._scheduler.retire(sequence, keep=False)
        for sequence in self._scheduler.waiting():
            self._scheduler.forget(sequence)
        for message in self._inbox:
            if isinstance(message, Job):
                self._call(message.group.fail, error)
        self._inbox.clear()
        for job in self._live:
            self._call(job.group.fail, error)
        self._live.clear()

    def _tell(self, group: Group) -> News:
        return self._news.setdefault(group, News([], []))

    def _deliver(self) -> None:
        if self._news:
            news, self._news = self._news, {}
            self._call(_hand_over, news)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop has closed: nobody is left to tell
            self._is_stopping = True


def _hand_over(news: dict[Group, News]) -> None:
    """In the event loop's thread."""
    for group, (deltas, generations) in news.items():
        group.put(deltas)
        for generation in generations:
            group.finish(generation)
