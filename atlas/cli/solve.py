"""`atlas solve`: a task in, code out that passed its tests; progress on stderr, exit 0 only if it was verified."""

from __future__ import annotations

import asyncio
import sys
import time
from functools import singledispatch
from pathlib import Path
from typing import TextIO

import click
import msgspec

from atlas.cli.client import Server, find_key, find_server
from atlas.cli.options import find_directory, json_option, read_settings, settings_options
from atlas.cli.receipts import signing_key
from atlas.engine import RemoteEngine
from atlas.errors import OperatorError
from atlas.log import configure_logging
from atlas.ralph import Tools, issue_receipt, solve_task
from atlas.sandbox import Sandbox
from atlas.settings import LogSettings, SandboxSettings
from atlas.types import (
    AttemptStarted,
    CandidateEnded,
    CandidateTested,
    Request,
    Route,
    Run,
    RunClosed,
    RunStarted,
    SelfTestsWritten,
    SolveEvent,
    Verdict,
    VisibleTests,
    WorkRetried,
)

TOLD_CHARS = 160


@click.command()
@click.argument("task", type=click.File("r", encoding="utf-8"))
@click.option("--tests", type=click.File("r", encoding="utf-8"), help="Asserts, a pytest module, or a function check(candidate).")
@click.option("--name", "entry_point", default="", help="Function that is asked for; by default read from tests and task.")
@click.option("-k", "--candidates", "k", type=click.IntRange(1, 128), default=Route().k, show_default=True)
@click.option("--attempts", type=click.IntRange(1, 50), default=Route().max_attempts, show_default=True)
@click.option("--deadline", "deadline_s", type=click.FloatRange(min=0.1), help="Seconds after which it gives up.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Per candidate.")
@click.option("--seed", type=int)
@click.option("--receipt", type=click.Path(dir_okay=False, path_type=Path), help="Write a signed receipt (see `atlas verify`).")
@json_option
@settings_options
def solve(
    task: TextIO,
    tests: TextIO | None,
    entry_point: str,
    k: int,
    attempts: int,
    deadline_s: float | None,
    max_tokens: int | None,
    seed: int | None,
    receipt: Path | None,
    as_json: bool,
    config: Path | None,
    data_dir: str | None,
) -> None:
    """Solve the task in a file (- is stdin) with the running server's model, and run the code before showing it.

    \b
    Example:
      atlas solve task.txt --tests test_task.py > solution.py

    Exit status 0 means that the given tests passed, or the examples in the task; with tests that the model wrote itself it is 1.
    """
    settings = read_settings(config, data_dir)
    directory = find_directory(settings)
    server = find_server(directory)
    request = Request(
        task=task.read(),
        entry_point=entry_point,
        tests=VisibleTests(code=tests.read() if tests else ""),
        deadline_s=deadline_s,
        seed=seed,
        route=Route(k=k, max_attempts=attempts, max_tokens=max_tokens),
    )
    if not request.task.strip():
        raise click.UsageError(f"{task.name} holds no task")
    configure_logging("error")
    run = asyncio.run(run_on(server, find_key(directory, server), request, settings.sandbox))
    if receipt is not None and run.code:
        receipt.write_bytes(issue_receipt(run, signing_key(directory), issued_at=time.time()))
    show(run, as_json=as_json)
    sys.exit(0 if run.verdict.status == "verified" else 1)


async def run_on(server: Server, key: str, request: Request, sandbox_settings: SandboxSettings) -> Run:
    """Solve with the server's model and a sandbox of our own, telling stderr how it goes.

    Raises:
        OperatorError: the server cannot be spoken to in this way, or something of ours ended the run.
    """
    if server.ca is not None:
        raise OperatorError("`atlas solve` cannot yet speak to a server with its own certificate authority (--tls auto)")
    engine = RemoteEngine(f"{server.url}/v1", model=server.model or "", api_key=key)
    sandbox = Sandbox(sandbox_settings, log_settings=LogSettings(level="error"))
    try:
        await sandbox.start()
        await sandbox.status()  # a sandbox that is closed while it starts complains on stderr
        async for event in solve_task(request, Tools(generate=engine.submit, run=sandbox.run)):
            if line := told(event):
                print(line, file=sys.stderr, flush=True)
    finally:
        await sandbox.close()
        await engine.close()
    assert isinstance(event, RunClosed)
    return event.run


def show(run: Run, *, as_json: bool) -> None:
    """The code on stdout, or all of it as JSON.

    Raises:
        OperatorError: something of ours ended the run.
    """
    if as_json:
        print(msgspec.json.encode(run).decode())
    elif run.failure is not None:
        raise OperatorError(run.failure.message)
    else:
        print(run.code, end="")
        print(as_words(run.verdict, run), file=sys.stderr)


def as_words(verdict: Verdict, run: Run) -> str:
    """The verdict as one line."""
    source = {"given": "given tests", "generated": "tests that the model wrote", "none": "no tests"}[verdict.source]
    counts = f"{verdict.tests_passed} of {verdict.tests_run} {source}" if verdict.tests_run else source
    marks = [f"tier {verdict.tier}"] if verdict.tier else []
    marks += ["sealed" if verdict.sealed else "not sealed"] if verdict.tests_run else []
    marks += [f"{len(run.attempts)} attempt(s)", f"{run.num_tokens} tokens", f"{run.wall_s:.1f} s"]
    return f"{verdict.status}: {counts} ({', '.join(marks)})"


@singledispatch
def told(event: SolveEvent) -> str:
    """An event as a line for a person; empty for those that say nothing new."""
    return ""


@told.register
def _(event: RunStarted) -> str:
    held_back = f", {event.num_held_back} of them held back" if event.num_held_back else ""
    return f"{event.num_tests} tests{held_back}" if event.num_tests else "no tests: the model will be asked for some"


@told.register
def _(event: SelfTestsWritten) -> str:
    return f"the model wrote {event.num_tests} tests"


@told.register
def _(event: AttemptStarted) -> str:
    return (
        f"attempt {event.attempt}: {event.k} candidates at temperature {event.temperature:.2g} ({event.action}: {event.reason})"
    )


@told.register
def _(event: CandidateEnded) -> str:
    ref = event.candidate
    return "" if event.state == "untested" else f"  {ref.attempt}.{ref.index + 1} {event.state}"


@told.register
def _(event: CandidateTested) -> str:
    ref = event.candidate
    last = (event.message.strip().splitlines() or [""])[-1][:TOLD_CHARS]
    why = f": {last}" if last and event.state != "passed" else ""
    return f"  {ref.attempt}.{ref.index + 1} {event.state}, {event.tests_passed} of {event.tests_run} tests{why}"


@told.register
def _(event: WorkRetried) -> str:
    return f"  {event.what} failed: {event.failure.message}; trying again in {event.after_s:.2g} s"
