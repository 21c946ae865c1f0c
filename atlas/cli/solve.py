"""`atlas solve`: a task in, code out that passed its tests; progress on stderr, exit 0 only if it was verified."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from atlas.cli.client import Server, find_access
from atlas.cli.options import json_option, read_settings, settings_options
from atlas.cli.solve_project import project_body
from atlas.cli.tasks import Closed, Tasks
from atlas.cli.watching import changed
from atlas.errors import OperatorError
from atlas.log import configure_logging
from atlas.ralph import told
from atlas.sandbox import write_changes
from atlas.types import Event

STDIN = "-"
READABLE = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


@click.command()
@click.argument("task", type=READABLE)
@click.option(
    "--tests", help="A file: asserts, a pytest module, or check(candidate). With --project: the command, by default pytest."
)
@click.option("--name", "entry_point", default="", help="Function that is asked for; by default read from tests and task.")
@click.option("-k", "--candidates", "k", type=click.IntRange(1, 128), help="Per attempt; by default as the server has it.")
@click.option("--attempts", "max_attempts", type=click.IntRange(1, 50), help="By default as the server has it.")
@click.option("--deadline", "deadline_s", type=click.FloatRange(min=0.1), help="Seconds after which it gives up.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Per candidate.")
@click.option("--seed", type=int)
@click.option("--priority", type=click.Choice(["p0", "p1", "p2"]), help="p0 needs a key with the scope `interactive`.")
@click.option("--receipt", type=click.Path(dir_okay=False, path_type=Path), help="Write a signed receipt (see `atlas verify`).")
@click.option(
    "--project", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Change the project in this directory."
)
@click.option("--file", "files", multiple=True, help="With --project: a file to be changed; repeat for several.")
@click.option("--python", default="", help="With --project: an interpreter or a virtual environment's directory.")
@click.option("--diff", "output", flag_value="diff", help="With --project: print the change as a diff, the default.")
@click.option("--write", "output", flag_value="write", help="With --project: make the change in the files if it is verified.")
@click.option("--watch", is_flag=True, help="Solve again whenever the task or the tests change, until interrupted.")
@json_option
@settings_options
def solve(watch: bool, config: Path | None, data_dir: str | None, **asked: Any) -> None:
    """Have the running server solve the task in a file (- is stdin): code that was run before it is shown.

    \b
    Example:
      atlas solve task.txt --tests test_task.py > solution.py
      echo "The mean is wrong." | atlas solve - --project . --name rolling_mean --write

    Exit status 0 means that the given tests passed, or the examples in the task; with tests that the model wrote itself it is 1.
    Interrupted, it cancels the task.
    """
    wanted = Wanted(**{name: asked.pop(name) for name in Wanted._fields if name in asked}, fields=asked)
    files = wanted.watched()
    if watch and STDIN in map(str, files):
        raise click.UsageError("--watch follows files; stdin is read once")
    if list(map(str, files)).count(STDIN) > 1:
        raise click.UsageError("task and tests cannot both be stdin")
    if wanted.project is None and (wanted.files or wanted.python or wanted.output):
        raise click.UsageError("--file, --python, --diff and --write go with --project")
    server, key = find_access(read_settings(config, data_dir))
    configure_logging("error")
    job = Job(server, key, wanted)
    try:
        is_verified = asyncio.run(job.watch(files) if watch else job.once())
    except KeyboardInterrupt:
        print("interrupted; the task is cancelled", file=sys.stderr)
        sys.exit(130)
    sys.exit(0 if is_verified else 1)


class Wanted(NamedTuple):
    """What the command line says; `fields` are those of a task as it is submitted, where None is left out."""

    task: Path
    tests: str | None
    project: Path | None
    files: tuple[str, ...]
    python: str
    output: str | None
    receipt: Path | None
    as_json: bool
    fields: dict[str, Any]

    def watched(self) -> list[Path]:
        return [self.task, *([Path(self.tests)] if self.tests is not None and self.project is None else [])]

    def body(self) -> dict[str, Any]:
        """Of the request, from the files as they are now.

        Raises:
            OperatorError: one cannot be read, or there is no task in it.
        """
        task = read(self.task)
        if not task.strip():
            raise OperatorError(f"{self.task} holds no task")
        given = {name: value for name, value in self.fields.items() if value is not None}
        if self.project is None:
            return {"task": task, "tests": read(Path(self.tests)) if self.tests else "", **given}
        name = str(given.get("entry_point", ""))
        found = project_body(self.project, task, files=self.files, entry_point=name, tests=self.tests or "", python=self.python)
        return {"task": task, **found, **given}


class Job:
    """What is asked for, to be solved once or again and again."""

    def __init__(self, server: Server, key: str, wanted: Wanted) -> None:
        self._server, self._key, self._wanted = server, key, wanted

    async def once(self) -> bool:
        """Solve it and show what came of it; whether that is verified.

        Raises:
            OperatorError: the server refuses or is silent, or something of ours ended the task.
        """
        wanted = self._wanted
        body = wanted.body()
        async with Tasks(self._server, self._key) as tasks:
            closed = await tasks.solve(body, tell)
            if wanted.receipt is not None and closed.run is not None and closed.run.code:
                wanted.receipt.write_bytes(await tasks.receipt(closed.id))
        show(closed, as_json=wanted.as_json)
        is_verified = closed.result is not None and closed.result.success
        if is_verified and wanted.project is not None and wanted.output == "write":
            assert closed.run is not None
            assert closed.run.change is not None
            write_changes(wanted.project.absolute(), closed.run.change)
        return is_verified

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
        print(closed.result.code if closed.result.diff is None else closed.result.diff, end="", flush=True)
        print(closed.result.line(), file=sys.stderr, flush=True)
