"""The loop: attempts until something passed, or time, tokens, tests or ideas are used up.

Pure in the middle: whatever has an effect is a tool (tools.py), what comes next is a policy (policy.py), nothing is stored here.
What a candidate does wrong is a value in its Attempt. What goes wrong with us is retried, and then ends the run with an
`OurFailure`; it is in no prompt, and makes no candidate a failed one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

import structlog
from msgspec.structs import replace

from atlas.errors import AtlasError, RateLimited
from atlas.ralph.agreement import Agreement, agree, votes_of
from atlas.ralph.attempt import Round
from atlas.ralph.desk import Desk, together
from atlas.ralph.examples import named_in
from atlas.ralph.patience import our_failure
from atlas.ralph.policy import Step, num_passed
from atlas.ralph.projects import is_proof, kept, project_suite
from atlas.ralph.selftests import likeliest_name, tests_by_model
from atlas.ralph.testing import is_right, run_suite
from atlas.ralph.tools import Tools
from atlas.ralph.verdict import verdict_of
from atlas.ralph.visible import Suite, case_suite, read_tests, smoke_suite
from atlas.types import AttemptEnded, Candidate, Event, OurFailure, Request, Run, RunClosed, RunStarted

log = structlog.get_logger("atlas.ralph")

NOT_SAID = OurFailure(code="internal_error", message="a defect of ours ended the run; the server's log has its traceback")


async def solve_task(request: Request, tools: Tools) -> AsyncGenerator[Event, None]:
    """Solve a request; the last event is RunClosed, whatever happens.

    Closing the iterator early ends all that is under way: generation, tests, waiting.
    """
    events: asyncio.Queue[Event | None] = asyncio.Queue()
    work = asyncio.create_task(_Solving(request, tools, events.put_nowait).run())
    work.add_done_callback(lambda _: events.put_nowait(None))
    try:
        while (event := await events.get()) is not None:
            yield event
        await work  # raises a defect in closing the run, if there was one
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


class _Solving:
    """One run, from its request to RunClosed."""

    def __init__(self, request: Request, tools: Tools, emit: Callable[[Event], None]) -> None:
        self._request, self._tools = request, tools
        self._desk = Desk(request, tools, emit)
        self._ended_by = ""
        self._step = Step("stop", "")
        self._winner: Candidate | None = None
        self._agreement: Agreement | None = None
        self._is_confirmed = False

    async def run(self) -> None:
        failure: OurFailure | None = None
        try:
            async with asyncio.timeout(self._request.deadline_s) as deadline:
                await self._solve()
        except TimeoutError:
            failure = None if deadline.expired() else NOT_SAID
            self._ended_by = "deadline"
        except RateLimited:  # no fault of anybody's: the owner's means are used up, and what there is must do
            self._ended_by = "budget"
        except AtlasError as error:
            failure = our_failure(error)
        except Exception:  # the run has to be closed, with an error of ours, and nobody's code to blame
            log.exception("run.broken")
            failure = NOT_SAID
        await self._close(failure)

    async def _solve(self) -> None:
        desk, request = self._desk, self._request
        if request.route is None:
            desk.route = await desk.ours("route", lambda: self._tools.route(request))
        desk.context = await desk.ours("context", lambda: self._tools.context(request))
        desk.suite = read_tests(request) if request.project is None else project_suite(request)
        desk.entry_point = desk.suite.entry_point if desk.suite else request.entry_point or named_in(request.task)
        self._tell_start(desk.suite)
        while not self._is_over():
            await self._attempt()
        await self._choose()

    def _tell_start(self, suite: Suite | None) -> None:
        desk = self._desk
        desk.emit(
            RunStarted(
                at_s=desk.now_s,
                route=desk.route,
                entry_point=desk.entry_point,
                source=suite.source if suite else "none",
                num_tests=suite.num_tests if suite else 0,
                num_held_back=len(suite.held_back) if suite else 0,
            )
        )

    def _is_over(self) -> bool:
        """Whether to stop, and why."""
        self._ended_by = self._reason_to_stop()
        return bool(self._ended_by)

    def _reason_to_stop(self) -> str:
        desk = self._desk
        if self._request.until == "first_pass" and (reason := self._success()):
            return reason
        if reason := desk.spent():
            return reason
        self._step = self._tools.policy(desk.attempts, desk.route)
        if self._step.action != "stop":
            return ""
        return "max_attempts" if len(desk.attempts) >= desk.route.max_attempts else "policy"

    def _success(self) -> str:
        desk = self._desk
        if desk.suite is not None and desk.suite.source == "generated":
            self._agreement = agree(votes_of(desk.candidates))
            return "agreed" if self._agreement and self._agreement.is_strong else ""
        return "passed" if any(candidate.state == "passed" for candidate in desk.candidates) else ""

    # -- attempts --

    async def _attempt(self) -> None:
        """One attempt; without given tests, the first one brings tests with it."""
        desk = self._desk
        attempt = Round(desk, self._step)
        try:
            if desk.suite is None:
                await self._run_untested(attempt)
            else:
                await attempt.run()
        finally:
            desk.attempts.append(attempt.attempt())
            desk.emit(AttemptEnded(at_s=desk.now_s, attempt=desk.attempts[-1]))

    async def _run_untested(self, attempt: Round) -> None:
        """Candidates and tests are written at the same time, if the task names the function; else one after the other."""
        desk = self._desk
        can_be_called = self._request.language == "python"
        suites: list[Suite] = []
        if can_be_called and desk.entry_point:
            await together(attempt.run(), self._write_tests(desk.entry_point, suites))
        else:
            await attempt.run()
            desk.entry_point = likeliest_name(attempt.codes) if can_be_called else ""
            if desk.entry_point:
                await self._write_tests(desk.entry_point, suites)
        suite = suites[0] if suites else smoke_suite(self._request)
        await attempt.test_all(suite)
        desk.suite = suite

    async def _write_tests(self, entry_point: str, suites: list[Suite]) -> None:
        if found := await tests_by_model(self._desk, entry_point):
            suites.append(case_suite(self._request, found, source="generated"))

    # -- the answer --

    async def _choose(self) -> None:
        """The winner, confirmed; of several, whom `rank` puts first."""
        desk = self._desk
        if desk.suite is not None and desk.suite.source == "generated":
            self._agreement = agree(votes_of(desk.candidates))
            await self._confirm(self._agreement.candidates if self._agreement else ())
        else:
            await self._confirm([candidate for candidate in desk.candidates if candidate.state == "passed"])
        self._winner = self._winner or await self._best()

    async def _confirm(self, candidates: Sequence[Candidate]) -> None:
        desk, suite = self._desk, self._desk.suite
        for candidate in await self._ranked(candidates):
            assert suite is not None
            if self._is_confirmed_already(candidate):
                self._winner, self._is_confirmed = candidate, True
                return
            again = await run_suite(desk, suite, candidate.code, fresh=True)
            before = candidate.execution
            if (
                before is not None
                and _passed(again.execution.cases) == _passed(before.cases)
                and is_right(before) == again.is_right
            ):
                self._winner, self._is_confirmed = candidate, True
                return

    def _is_confirmed_already(self, candidate: Candidate) -> bool:
        """Where the first pass ends the run, the attempt has confirmed it."""
        suite = self._desk.suite
        is_first_pass = self._request.until == "first_pass" and candidate.state == "passed"
        return is_first_pass and suite is not None and suite.source == "given"

    async def _best(self) -> Candidate | None:
        """Where nothing passed: what passed most, of equal ones the likeliest."""
        with_code = [candidate for candidate in self._desk.candidates if candidate.code]
        ranked = await self._ranked(with_code)
        return max(ranked, key=num_passed, default=None)

    async def _ranked(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        return await self._desk.ours("rank", lambda: self._tools.rank(candidates)) if candidates else ()

    async def _close(self, failure: OurFailure | None) -> None:
        desk, winner, suite = self._desk, self._winner, self._desk.suite
        if winner is None:  # the run was cut short: what there is
            winner = max((candidate for candidate in desk.candidates if candidate.code), key=num_passed, default=None)
        verdict = verdict_of(
            winner,
            desk.candidates,
            suite,
            agreement=self._agreement,
            is_confirmed=self._is_confirmed or (winner is not None and self._is_confirmed_already(winner)),
            failure=failure,
        )
        change = desk.verdicts.get(winner.code) if winner else None
        if change is not None and not is_proof(change) and verdict.status == "verified":
            verdict = replace(verdict, status="unchecked")
        run = Run(
            request=self._request,
            route=desk.route,
            verdict=verdict,
            attempts=tuple(desk.attempts),
            entry_point=desk.entry_point,
            checks=suite.checks if suite else (),
            code=winner.code if winner else "",
            answer=winner.text if winner else "",
            winner=winner.ref if winner else None,
            ended_by="failure" if failure else self._ended_by,
            failure=failure,
            change=kept(change) if change else None,
            num_tokens=desk.num_tokens,
            sandbox_s=desk.sandbox_s,
            wall_s=desk.now_s,
        )
        desk.emit(RunClosed(at_s=desk.now_s, run=run))


def _passed(cases: Sequence[object]) -> list[bool]:
    return [getattr(case, "outcome", "") == "passed" for case in cases]
