"""One attempt: k candidates decode together, and each is tested the moment it ends. The first that passes ends the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec.structs import replace

from atlas.errors import ContextLengthExceeded
from atlas.ralph.asking import conversations
from atlas.ralph.desk import Desk, first_of, together
from atlas.ralph.extract import read_code
from atlas.ralph.policy import Step
from atlas.ralph.projects import read_edit
from atlas.ralph.repetition import repeats
from atlas.ralph.syntax import fingerprint
from atlas.ralph.testing import Tested, run_suite
from atlas.ralph.tools import Candidates
from atlas.ralph.visible import Suite
from atlas.types import (
    Attempt,
    AttemptStarted,
    Candidate,
    CandidateEnded,
    CandidateRef,
    CandidateState,
    CandidateTested,
    Generation,
    Message,
    Prompt,
    Sampling,
    candidate_seed,
)

SEEDS_PER_ATTEMPT = 128  # as many candidates as an attempt can have
WATCHED_EVERY_CHARS = 200  # how often a growing answer is looked at for repetition
MESSAGE_CHARS = 500


class Round:
    """An attempt while it runs. Candidates are values: each news replaces one."""

    def __init__(self, desk: Desk, step: Step) -> None:
        assert step.action != "stop"
        self._desk, self._step, self._action = desk, step, step.action
        self._number = len(desk.attempts) + 1
        self._started_s = desk.now_s
        self._sandbox_s, self._num_retries = desk.sandbox_s, desk.num_retries  # as they were
        self._messages: tuple[Message, ...] = ()
        self._candidates: dict[int, Candidate] = {}
        self._tests: dict[int, asyncio.Task[None]] = {}
        self._repeating: set[int] = set()
        self._group: Candidates | None = None
        self._has_winner = False

    @property
    def temperature(self) -> float:
        route = self._desk.route
        return min(route.temperature + (self._number - 1) * route.temperature_rise, route.max_temperature)

    @property
    def codes(self) -> list[str]:
        return [candidate.code for candidate in self._candidates.values() if candidate.code]

    def attempt(self) -> Attempt:
        """What has come of it so far."""
        desk = self._desk
        return Attempt(
            number=self._number,
            action=self._action,
            reason=self._step.reason,
            temperature=self.temperature,
            repaired=self._step.repaired,
            messages=self._messages,
            candidates=tuple(candidate for _, candidate in sorted(self._candidates.items())),
            started_s=self._started_s,
            wall_s=desk.now_s - self._started_s,
            sandbox_s=desk.sandbox_s - self._sandbox_s,
            num_retries=desk.num_retries - self._num_retries,
        )

    async def run(self) -> None:
        """Generate the candidates, and test each as it ends if there are tests.

        Raises:
            AtlasError: of ours, after several tries.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._desk.ours("engine", lambda: self._decode(tasks))
        except BaseExceptionGroup as failures:
            raise first_of(failures) from None

    async def test_all(self, suite: Suite) -> None:
        """Test what could not be tested when it ended, because there were no tests yet."""
        untested = [candidate for candidate in self._candidates.values() if candidate.state == "untested" and candidate.code]
        await together(*(self._test(candidate, suite) for candidate in untested))

    # -- generating --

    async def _decode(self, tasks: asyncio.TaskGroup) -> None:
        """Generate the candidates that are missing: all of them, or those that a failure of ours has cost."""
        missing = [index for index in range(self._desk.route.k) if index not in self._candidates]
        if not missing or self._has_winner:
            return
        group = self._group = await self._submit(missing)
        watching = asyncio.create_task(self._watch(group, missing))
        try:
            async for generation in group.finished():
                self._take(generation, missing[generation.index], tasks)
        finally:
            group.cancel()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _submit(self, missing: Sequence[int]) -> Candidates:
        """Start the candidates on the longest prompt that the model reads."""
        desk, too_long = self._desk, None
        prompts = conversations(desk.request, desk.suite, step=self._step, context=desk.context, attempts=desk.attempts)
        for messages in prompts:
            try:
                group = await desk.tools.generate(self._prompt(messages, missing))
            except ContextLengthExceeded as error:
                too_long = error
                continue
            self._tell_start(messages, len(missing))
            return group
        assert too_long is not None
        raise too_long

    def _prompt(self, messages: tuple[Message, ...], missing: Sequence[int]) -> Prompt:
        route, left = self._desk.route, self._desk.left_tokens
        bounds = [bound for bound in (route.max_tokens, None if left is None else max(1, left // len(missing))) if bound]
        return Prompt(
            model=self._desk.request.model,
            messages=messages,
            sampling=tuple(map(self._sampling, missing)),
            n=len(missing),
            max_tokens=min(bounds, default=None),
            thinking=route.thinking,
            deadline_s=self._desk.left_s,
            is_race=self._is_race(self._desk.suite),
            mean_logprob=True,
        )

    def _is_race(self, suite: Suite | None) -> bool:
        """Whether the first candidate that passes ends the others."""
        return self._desk.request.until == "first_pass" and suite is not None and suite.source != "generated"

    def _sampling(self, index: int) -> Sampling:
        is_greedy = self._desk.route.is_first_greedy and self._number == 1 and index == 0
        seed = self._desk.request.seed
        return Sampling(
            temperature=0.0 if is_greedy else self.temperature,
            seed=None if seed is None else candidate_seed(seed, (self._number - 1) * SEEDS_PER_ATTEMPT + index),
        )

    def _tell_start(self, messages: tuple[Message, ...], num_candidates: int) -> None:
        self._messages = messages
        desk = self._desk
        desk.emit(
            AttemptStarted(
                at_s=desk.now_s,
                attempt=self._number,
                action=self._action,
                k=num_candidates,
                temperature=self.temperature,
                reason=self._step.reason,
            )
        )

    async def _watch(self, group: Candidates, missing: Sequence[int]) -> None:
        """Stop candidates that repeat themselves. What makes the whole group fail, `finished` says."""
        texts: dict[int, str] = {}
        looked: dict[int, int] = {}
        async for delta in group:
            text = texts[delta.index] = texts.get(delta.index, "") + delta.reasoning + delta.text
            if len(text) - looked.get(delta.index, 0) >= WATCHED_EVERY_CHARS:
                looked[delta.index] = len(text)
                if repeats(text) and missing[delta.index] not in self._repeating:
                    self._repeating.add(missing[delta.index])
                    group.cancel([delta.index])

    # -- reading --

    def _take(self, generation: Generation, index: int, tasks: asyncio.TaskGroup) -> None:
        """A candidate has ended: read its code, and test it if that is worth it."""
        desk = self._desk
        desk.num_tokens += generation.num_tokens
        candidate = self._read(generation, index)
        self._candidates[index] = candidate
        desk.emit(
            CandidateEnded(at_s=desk.now_s, candidate=candidate.ref, num_tokens=candidate.num_tokens, state=candidate.state)
        )
        if candidate.state == "untested" and candidate.code and desk.suite is not None and not desk.spent():
            self._tests[index] = tasks.create_task(self._test(candidate, desk.suite))

    def _read(self, generation: Generation, index: int) -> Candidate:
        candidate = Candidate(
            ref=CandidateRef(attempt=self._number, index=index),
            text=generation.text,
            reasoning=generation.reasoning,
            finish_reason=generation.finish_reason,
            num_tokens=generation.num_tokens,
            mean_logprob=generation.mean_logprob,
            ended_s=self._desk.now_s,
        )
        is_repeating = index in self._repeating or repeats(generation.text)
        if generation.finish_reason == "abort" and not is_repeating:
            return replace(candidate, state="cancelled" if self._has_winner else "untested")
        code = self._code(generation.text)
        if is_repeating and (not code or repeats(code)):
            return replace(candidate, state="repeating")
        return self._known_or_new(replace(candidate, code=code)) if code else replace(candidate, state="no_code")

    def _code(self, answer: str) -> str:
        request = self._desk.request
        if request.project is not None:
            return read_edit(answer)
        return read_code(answer, self._desk.entry_point, language=request.language)

    def _known_or_new(self, candidate: Candidate) -> Candidate:
        first = self._desk.seen.setdefault(fingerprint(candidate.code), candidate.ref)
        return candidate if first == candidate.ref else replace(candidate, state="duplicate", duplicate_of=first)

    # -- testing --

    async def _test(self, candidate: Candidate, suite: Suite) -> None:
        tested = await run_suite(self._desk, suite, candidate.code)
        state: CandidateState = "passed" if tested.is_right else "failed"
        ends_others = tested.is_right and self._is_race(suite)
        if ends_others and suite.source == "given":
            again = await run_suite(self._desk, suite, candidate.code, fresh=True)
            if not again.is_right:
                state, tested, ends_others = "unconfirmed", again, False
        self._settle(candidate, state, tested)
        if ends_others:
            self._end_others(candidate.ref.index)

    def _settle(self, candidate: Candidate, state: CandidateState, tested: Tested) -> None:
        desk, execution = self._desk, tested.execution
        settled = replace(candidate, state=state, execution=execution, failure=tested.failure, tested_s=desk.now_s)
        self._candidates[candidate.ref.index] = settled
        desk.emit(
            CandidateTested(
                at_s=desk.now_s,
                candidate=candidate.ref,
                state=state,
                tests_run=execution.tests_run,
                tests_passed=execution.tests_passed,
                message=execution.error_message[:MESSAGE_CHARS],
            )
        )

    def _end_others(self, winner: int) -> None:
        self._has_winner = True
        if self._group is not None:
            self._group.cancel()
        for index, task in self._tests.items():
            if index != winner and not task.done():
                task.cancel()
                self._candidates[index] = replace(self._candidates[index], state="cancelled")
