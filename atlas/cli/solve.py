"""`atlas solve`: a task in, code out that passed its tests; progress on stderr, exit 0 only if it was verified."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from atlas.cli.client import Server, find_access
from atlas.cli.options import json_option, read_settings, settings_options
from atlas.cli.tasks import Closed, Tasks
from atlas.cli.watching import changed
from atlas.errors import OperatorError
from atlas.log import configure_logging
from atlas.ralph import told
from atlas.types import Event

STDIN = "-"
READABLE = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


@click.command()
@click.argument("task", type=READABLE)
@click.option("--tests", type=READABLE, help="Asserts, a pytest module, or a function check(candidate).")
@click.option("--name", "entry_point", default="", help="Function that is asked for; by default read from tests and task.")
@click.option("-k", "--candidates", "k", type=click.IntRange(1, 128), help="Per attempt; by default as the server has it.")
@click.option("--attempts", "max_attempts", type=click.IntRange(1, 50), help="By default as the server has it.")
@click.option("--deadline", "deadline_s", type=click.FloatRange(min=0.1), help="Seconds after which it gives up.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Per candidate.")
@click.option("--seed", type=int)
@click.option("--priority", type=click.Choice(["p0", "p1", "p2"]), help="p0 needs a key with the scope `interactive`.")
@click.option("--receipt", type=click.Path(dir_okay=False, path_type=Path), help="Write a signed receipt (see `atlas verify`).")
@click.option("--watch", is_flag=True, help="Solve again whenever the task or the tests change, until interrupted.")
@json_option
@settings_options
def solve(
    task: Path,
    tests: Path | None,
    receipt: Path | None,
    watch: bool,
    as_json: bool,
    config: Path | None,
    data_dir: str | None,
    **asked: Any,
) -> None:
    """Have the running server solve the task in a file (- is stdin): code that was run before it is shown.

    \b
    Example:
      atlas solve task.txt --tests test_task.py > solution.py

    Exit status 0 means that the given tests passed, or the examples in the task; with tests that the model wrote itself it is 1.
    Interrupted, it cancels the task.
    """
    files = [file for file in (task, tests) if file is not None]
    if watch and STDIN in map(str, files):
        raise click.UsageError("--watch follows files; stdin is read once")
    if list(map(str, files)).count(STDIN) > 1:
        raise click.UsageError("task and tests cannot both be stdin")
    server, key = find_access(read_settings(config, data_dir))
    configure_logging("error")
    job = Job(server, key, task=task, tests=tests, receipt=receipt, as_json=as_json, asked=asked)
    try:
        is_verified = asyncio.run(job.watch(files) if watch else job.once())
    except KeyboardInterrupt:
        print("interrupted; the task is cancelled", file=sys.stderr)
        sys.exit(130)
    sys.exit(0 if is_verified else 1)


class Job:
    """What is asked for, to be solved once or again and again."""

    def __init__(
        self,
        server: Server,
        key: str,
        *,
        task: Path,
        tests: Path | None,
        receipt: Path | None,
        as_json: bool,
        asked: dict[str, Any],
    ) -> None:
        self._server, self._key = server, key
        self._task, self._tests, self._receipt = task, tests, receipt
        self._as_json = as_json
        self._asked = {name: value for name, value in asked.items() if value is not None}

    async def once(self) -> bool:
        """Solve it and show what came of it; whether that is verified.

        Raises:
            OperatorError: the server refuses or is silent, or something of ours ended the task.
        """
        body = self._body()
        async with Tasks(self._server, self._key) as tasks:
            closed = await tasks.solve(body, tell)
            if self._receipt is not None and closed.run is not None and closed.run.code:
                self._receipt.write_bytes(await tasks.receipt(closed.id))
        show(closed, as_json=self._as_json)
        return closed.result is not None and closed.result.success

    async def watch(self, files: Sequence[Path]) -> bool:
        """Solve, and again whenever a file changes; what is under way then is cancelled. Ends when interrupted."""
        while True:
            waiting = asyncio.create_task(changed(files))  # looks before they are read
            solving = asyncio.create_task(self.once())
            await asyncio.wait([solving, waiting], return_when=asyncio.FIRST_COMPLETED)
            await self._told(solving)
            if not waiting.done():
                print("watching; it is solved again when the files change (Ctrl-C ends)", file=sys.stderr, flush=True)
                await waiting
            print("changed: solving again", file=sys.stderr, flush=True)

    async def _told(self, solving: asyncio.Task[bool]) -> None:
        """End it if it runs; say what it failed with, and go on: the next change may mend that."""
        solving.cancel()
        [outcome] = await asyncio.gather(solving, return_exceptions=True)
        if isinstance(outcome, OperatorError):
            print(f"atlas: {outcome.message}", file=sys.stderr, flush=True)
        elif isinstance(outcome, Exception):
            raise outcome

    def _body(self) -> dict[str, Any]:
        task = read(self._task)
        if not task.strip():
            raise OperatorError(f"{self._task} holds no task")
        return {"task": task, "tests": read(self._tests) if self._tests else "", **self._asked}


def read(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == STDIN else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def tell(event: Event) -> None:
    if line := told(event):
        print(line, file=sys.stderr, flush=True)


def show(closed: Closed, *, as_json: bool) -> None:
    """The code on stdout, or all of the run as JSON.

    Raises:
        OperatorError: the task was closed without a result, or something of ours ended its run.
    """
    if closed.run is None or closed.result is None:
        raise OperatorError(f"task {closed.id} was closed as {closed.outcome}: {closed.reason}")
    if as_json:
        print(msgspec.json.encode(closed.run).decode(), flush=True)
    elif closed.run.failure is not None:
        raise OperatorError(closed.run.failure.message)
    else:
        print(closed.run.code, end="", flush=True)
        print(closed.result.line(), file=sys.stderr, flush=True)
