"""`atlas bench`: how good the running server's model is, alone and in the loop, by hidden tests; progress on stderr."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import click
import msgspec

from atlas import __version__, bench
from atlas.cli.client import Server, find_key, find_server
from atlas.cli.models import download_progress
from atlas.cli.options import find_directory, json_option, read_settings, settings_options
from atlas.engine import RemoteEngine
from atlas.errors import OperatorError
from atlas.log import configure_logging
from atlas.ralph import Policy, Tools, prompt_hash, solve_task
from atlas.sandbox import Sandbox
from atlas.settings import LogSettings, SandboxSettings, Settings
from atlas.types import Event, Request

FOLDER = "bench"
DATA = "data"
REPORT, SUMMARY = "report.html", "summary.json"


class SuiteGroup(click.Group):
    """`atlas bench compare|list` are commands; any other word is the suite of `atlas bench SUITE`."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["run", *args])


@click.group(name="bench", cls=SuiteGroup, subcommand_metavar="SUITE|compare|list [OPTIONS]")
def bench_command() -> None:
    """Measure the running server's model, alone and in the loop, on tasks with hidden tests.

    \b
    Example:
      atlas bench nano                            # 180 bundled tasks
      atlas bench humaneval --limit 40 --seeds 1
      atlas bench humaneval --data HumanEval.jsonl.gz
      atlas bench my-tasks.jsonl -k 8 --name monday
      atlas bench compare monday tuesday          # paired, task by task
      atlas bench list

    Suites: nano, humaneval, mbpp, livecodebench, or a file of tasks (see docs/bench.md). Of a public suite whose file is neither
    given nor here, the file is downloaded.
    """


@bench_command.command(name="run")
@click.argument("suite")
@click.option("--data", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The public suite's file.")
@click.option("-k", "--candidates", "k", type=click.IntRange(1, 128), default=5, show_default=True, help="Of best-of-k.")
@click.option("--attempts", type=click.IntRange(1, 50), default=5, show_default=True, help="Of the loop.")
@click.option("--seeds", type=click.IntRange(1, 20), default=3, show_default=True, help="How many.")
@click.option("--limit", type=click.IntRange(min=1), help="So many tasks, spread evenly over the suite.")
@click.option("--method", "methods", multiple=True, help="Only these: greedy, best-of-K, one-repair, thinking, ralph.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Per candidate.")
@click.option("--thinking", is_flag=True, help="The model can think: measure that as a baseline.")
@click.option("--parallel", type=click.IntRange(1, 64), default=2, show_default=True, help="Tasks at the same time.")
@click.option("--name", help="Of this bench; one that was cut off goes on where it ended.")
@json_option
@settings_options
def run(
    suite: str,
    data: Path | None,
    k: int,
    attempts: int,
    seeds: int,
    limit: int | None,
    methods: tuple[str, ...],
    max_tokens: int | None,
    thinking: bool,
    parallel: int,
    name: str | None,
    as_json: bool,
    config: Path | None,
    data_dir: str | None,
) -> None:
    """Solve and grade a suite's tasks; figures go to stdout, records and report to DATA-DIR/bench/runs/NAME.

    Exit status 0 means that everything was measured, and nothing of ours failed.
    """
    settings = read_settings(config, data_dir)
    tasks = bench.first_of(_suite(suite, data, settings), limit)
    directory = find_directory(settings)
    server = find_server(directory)
    offered = bench.standard_methods(k=k, attempts=attempts, max_tokens=max_tokens, thinking=thinking)
    wanted = bench.BenchSettings(
        suite=tasks.name,
        suite_sha256=tasks.sha256,
        num_tasks=len(tasks.tasks),
        model=server.model or "",
        methods=bench.chosen(offered, methods) if methods else offered,
        seeds=tuple(range(1, seeds + 1)),
        prompts=prompt_hash(),
        version=__version__,
    )
    folder = bench.Runs(directory.path).folder(name or f"{tasks.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    configure_logging("error")
    key = find_key(directory, server)
    records = asyncio.run(_measure(tasks, wanted, folder, server=server, key=key, sandbox=settings.sandbox, parallel=parallel))
    _show(wanted, records, folder, as_json=as_json)
    sys.exit(1 if any(record.failure for record in records) else 0)


@bench_command.command()
@click.argument("first", metavar="A[:METHOD]")
@click.argument("second", metavar="B[:METHOD]")
@json_option
@settings_options
def compare(first: str, second: str, as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """Compare two benches, or two methods, on the tasks that both have: paired bootstrap, and McNemar's exact test.

    \b
    Example:
      atlas bench compare monday tuesday
      atlas bench compare monday:greedy monday:ralph --json
    """
    pairs = _runs(config, data_dir).compare(first, second)
    if as_json:
        print(msgspec.json.encode({name: pair._asdict() for name, pair in pairs.items()}).decode())
    else:
        print("\n".join(bench.difference_line(name, pair) for name, pair in pairs.items()))


@bench_command.command(name="list")
@json_option
@settings_options
def list_benches(as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """List the benches of this data directory, newest last."""
    runs = _runs(config, data_dir)
    found = [runs.read(name) for name in runs.names()]
    if as_json:
        rows = [
            {"name": one.name, "suite": one.settings.suite, "model": one.settings.model, "records": len(one.records)}
            for one in found
        ]
        print(msgspec.json.encode(rows).decode())
        return
    for name, _, one, records in found:
        report = runs.folder(name) / REPORT
        print(f"{name}  {one.suite}, {one.num_tasks} tasks, {one.model}: {len(records)} records, {report}")


async def _measure(
    tasks: bench.Suite,
    wanted: bench.BenchSettings,
    folder: Path,
    *,
    server: Server,
    key: str,
    sandbox: SandboxSettings,
    parallel: int,
) -> list[bench.Record]:
    """With the server's model and a sandbox of our own.

    Raises:
        OperatorError: the server cannot be spoken to in this way, or the bench cannot be gone on with.
    """
    if server.ca is not None:
        raise OperatorError("`atlas bench` cannot yet speak to a server with its own certificate authority (--tls auto)")
    journal = bench.Journal(folder, wanted)
    engine = RemoteEngine(f"{server.url}/v1", model=wanted.model, api_key=key)
    pool = Sandbox(sandbox, log_settings=LogSettings(level="error"))

    def solve(request: Request, policy: Policy) -> AsyncIterator[Event]:
        return solve_task(request, Tools(generate=engine.submit, run=pool.run, policy=policy))

    try:
        await pool.start()
        await pool.status()
        measuring = bench.Bench(
            tasks,
            wanted.methods,
            seeds=wanted.seeds,
            model=wanted.model,
            solve=solve,
            run=pool.run,
            parallel=parallel,
        )
        return await measuring.measure(journal, Progress().tell)
    finally:
        await pool.close()
        await engine.close()
        journal.close()


class Progress:
    """One line on stderr: rewritten on a terminal, else one every ten seconds."""

    EVERY_S = 10.0

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._started_s = time.monotonic()
        self._told_s = self._started_s
        self._num_here = 0

    def tell(self, record: bench.Record, num_done: int, num_all: int) -> None:
        now_s = time.monotonic()
        self._num_here += 1
        is_last = num_done == num_all
        if self._is_terminal or is_last or record.failure or now_s - self._told_s >= self.EVERY_S:
            self._told_s = now_s
            left_s = (now_s - self._started_s) / self._num_here * (num_all - num_done)
            failed = f"; failed through us: {record.failure.message}" if record.failure else ""
            cell = f"{record.cell.method}, seed {record.cell.seed}, {record.cell.task}"
            self._print(f"{num_done}/{num_all} {cell}; {left_s:.0f} s to go{failed}", is_kept=is_last or bool(failed))

    def _print(self, line: str, *, is_kept: bool) -> None:
        start, end = ("\r\033[K", "\n" if is_kept else "") if self._is_terminal else ("", "\n")
        print(f"{start}{line}", end=end, file=sys.stderr, flush=True)


def _show(wanted: bench.BenchSettings, records: Sequence[bench.Record], folder: Path, *, as_json: bool) -> None:
    figures = bench.as_data(wanted, records)
    (folder / SUMMARY).write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")
    (folder / REPORT).write_text(bench.as_html(wanted, records), "utf-8")
    print(msgspec.json.encode(figures).decode() if as_json else bench.as_table(wanted, records))
    print(f"report: {folder / REPORT}", file=sys.stderr)


def _suite(name: str, data: Path | None, settings: Settings) -> bench.Suite:
    endpoint = os.environ.get("HF_ENDPOINT")
    shelf = bench.Shelf(find_directory(settings).path / FOLDER / DATA, endpoint=endpoint, is_offline=settings.engine.offline)
    with download_progress(name) as progress:
        return bench.load_suite(name, data=data, shelf=shelf, progress=progress)


def _runs(config: Path | None, data_dir: str | None) -> bench.Runs:
    return bench.Runs(find_directory(read_settings(config, data_dir)).path)
