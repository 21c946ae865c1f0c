"""`atlas verify`: code, or a change to a project, run in the sandbox; exit status 0 only if tests ran and all of them passed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec.structs import replace

from atlas.cli.options import json_option, read_settings, settings_options
from atlas.cli.receipts import verify_receipt
from atlas.cli.sandboxes import in_sandbox
from atlas.errors import AtlasError, BadRequest, OperatorError, Unavailable
from atlas.sandbox import CaseRequest, Evidence, RunRequest, make_branch, write_changes
from atlas.settings import Settings
from atlas.types import ProjectCheck, ProjectVerdict, RunLimits

LANGUAGES = {
    ".js": "javascript",
    ".go": "go",
    ".rs": "rust",
    ".c": "c",
    ".sh": "bash",
    **dict.fromkeys((".cpp", ".cc", ".cxx"), "c++"),
}
MODES = ("run", "pytest", "function", "stdin", "lint")
SHOWN_TESTS = 10
RECEIPT = ".json"
NOT_VERIFIED, MISUSED, UNDECIDED = 1, 2, 3  # exit statuses
OF_PROJECTS = ("python", "edits", "output", "branch", "fail_to_pass", "protect", "read_only")


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--tests", help="A file of tests; with --project the command that runs them.")
@click.option("--cases", type=click.Path(path_type=Path), help="A JSON file: [{args, expected}], or [{stdin, expected}].")
@click.option("--entry-point", help="The function that cases call, or that a checker is given: NAME or CLASS.METHOD.")
@click.option("--mode", type=click.Choice(MODES), help="By default: what --tests, --cases and --entry-point make of it.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds of wall time; of each run of a project's tests."
)
@click.option("--memory-mb", type=click.IntRange(min=1), help="Of all processes of the run together.")
@click.option("--fresh", is_flag=True, help="In a fresh interpreter with a hash seed of its own.")
@click.option("--project", type=click.Path(path_type=Path), help="Judge a change to the project in this directory.")
@click.option("--python", default="", help="With --project: an interpreter or a virtual environment's directory.")
@click.option("--edits", type=click.Path(path_type=Path, allow_dash=True), help="With --project: the change, or - for stdin.")
@click.option(
    "--fail-to-pass", multiple=True, metavar="ID", help="With --project: a test that must pass now; by default all that failed."
)
@click.option("--protect", multiple=True, metavar="PATTERN", help="With --project: paths that the change must leave alone.")
@click.option(
    "--read-only", multiple=True, type=click.Path(exists=True), help="With --project: what the tests must see beside it."
)
@click.option("--diff", "output", flag_value="diff", help="With --project: print the change as a diff if it is verified.")
@click.option("--write", "output", flag_value="write", help="With --project: make the change in the files if it is verified.")
@click.option("--branch", help="With --project: make a branch of this name if it is verified.")
@click.option("--fingerprint", default="", help="Of a receipt: the only key to be trusted, sha256:...")
@click.option("--no-run", is_flag=True, help="Of a receipt: check the signature only.")
@json_option
@settings_options
def verify(file: Path | None, project: Path | None, config: Path | None, data_dir: str | None, **options: Any) -> None:
    """Run code with its tests in the sandbox, or check a receipt; exit status 0 only if it is verified.

    \b
    Example:
      atlas verify solution.py --tests test_solution.py
      atlas verify add.py --entry-point add --cases cases.json --json
      atlas verify --project . --python .venv --tests "pytest -k parser" --edits change.diff --write
      atlas verify receipt.json --fingerprint sha256:1f0c...

    Tests import the code as `solution`. Exit status 1: not verified. 2: misused. 3: could not be decided, which says nothing
    about the code.
    """
    if (file is None) == (project is None):
        raise click.UsageError("name a FILE, or a directory with --project")
    if project is None and (given := [name for name in OF_PROJECTS if options[name]]):
        raise click.UsageError(f"--{given[0].replace('_', '-')} is of --project")
    with told_apart():
        settings = read_settings(config, data_dir)
    if file is not None and file.suffix == RECEIPT:
        with told_apart(of_operator=NotVerified):
            _require_receipt(file)
            run_again, as_json = not options["no_run"], options["as_json"]
            verify_receipt(settings, file, fingerprint=options["fingerprint"], run_again=run_again, as_json=as_json)
    with told_apart():
        if project is not None:
            verify_project(settings, project, options)
        elif file is not None:
            verify_file(settings, file, options)


class Stopped(click.ClickException):
    """One line on stderr, and the exit status."""

    def show(self, file: Any = None) -> None:  # click's own annotation
        click.echo(f"atlas: {self.message}", err=True)


class NotVerified(Stopped):
    """There is nothing that could be true."""

    exit_code = NOT_VERIFIED


class Misused(Stopped):
    """The user's to mend."""

    exit_code = MISUSED


class Undecided(Stopped):
    """Ours, or the machine's, to mend."""

    exit_code = UNDECIDED


@contextlib.contextmanager
def told_apart(*, of_operator: type[Stopped] = Misused) -> Iterator[None]:
    """A user's mistake, and what went wrong with us, are never taken for a verdict; `of_operator`: what an OperatorError is."""
    try:
        yield
    except Unavailable as error:
        raise Undecided(error.message) from None
    except OperatorError as error:
        raise of_operator(error.message) from None
    except BadRequest as error:
        raise Misused(error.message) from None
    except AtlasError as error:
        raise Undecided(error.message) from None


def _require_receipt(file: Path) -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        raise BadRequest(f"{file}: {error.strerror}") from None


def verify_file(settings: Settings, file: Path, options: dict[str, Any]) -> None:
    request = RunRequest(
        code=_read(file),
        language=LANGUAGES.get(file.suffix, "python"),
        mode=_mode(options),
        test_code=_read(Path(options["tests"])) if options["tests"] else None,
        entry_point=options["entry_point"],
        cases=_read_cases(options["cases"]),
        timeout=options["timeout"],
        memory_mb=options["memory_mb"],
        fresh=options["fresh"],
    )
    program, limits = request.program(), request.limits(settings.sandbox)
    evidence = Evidence.of(in_sandbox(settings, lambda sandbox: sandbox.run(program, limits)))
    if options["as_json"]:
        print(msgspec.json.encode(evidence).decode())
    else:
        print("\n".join(evidence.lines()))
    sys.exit(0 if evidence.success else NOT_VERIFIED)


def verify_project(settings: Settings, project: Path, options: dict[str, Any]) -> None:
    if options["edits"] is None:
        raise click.UsageError("--project needs --edits FILE, or --edits - to read the change from stdin")
    check = ProjectCheck(
        fail_to_pass=options["fail_to_pass"],
        protected=options["protect"],
        read_only=tuple(str(Path(path).absolute()) for path in options["read_only"]),
        directory=str(project.absolute()),
        edit=_read(options["edits"]),
        python=options["python"] and str(Path(options["python"]).absolute()),  # a server's pool has a directory of its own
        tests=options["tests"] or "pytest",
    )
    check = replace(check, limits=_limits(check.limits, options))
    verdict = in_sandbox(settings, lambda sandbox: sandbox.check_project(check))
    if options["as_json"]:
        print(msgspec.json.encode(verdict).decode())
    else:
        print("\n".join(verdict_lines(verdict)), file=sys.stderr if options["output"] == "diff" else sys.stdout)
    if verdict.passed:
        with told_apart(of_operator=Undecided):  # the change is right, but where it was to go it is not
            _hand_over(project.absolute(), verdict, options)
    sys.exit(0 if verdict.passed else NOT_VERIFIED)


def _limits(limits: RunLimits, options: dict[str, Any]) -> RunLimits:
    if seconds := options["timeout"]:
        limits = replace(limits, wall_s=seconds, cpu_s=seconds)
    return replace(limits, memory_bytes=options["memory_mb"] << 20) if options["memory_mb"] else limits


def _hand_over(directory: Path, verdict: ProjectVerdict, options: dict[str, Any]) -> None:
    if options["output"] == "diff" and not options["as_json"]:
        print(verdict.diff, end="")
    if options["output"] == "write":
        write_changes(directory, verdict)
    if name := options["branch"]:
        commit = make_branch(directory, name, verdict, message="Apply a verified change")
        print(f"branch {name}: {commit}", file=sys.stderr)


def verdict_lines(verdict: ProjectVerdict) -> list[str]:
    """The verdict for people: one line, then what went wrong."""
    word = "verified" if verdict.passed else "not verified"
    mended = sum(case.outcome == "passed" for case in verdict.fail_to_pass)
    counts = f"{mended} of {len(verdict.fail_to_pass)} failing tests pass now"
    counts += f", {len(verdict.broken)} of {verdict.num_pass_to_pass} passing ones are broken"
    found = counts if verdict.after is not None and verdict.evidence == "tests" else verdict.outcome
    lines = [f"{word}: {found} (not sealed, {verdict.tier})", *([f"  {verdict.message}"] if verdict.message else [])]
    lines += [f"  caught: {sign}" for sign in verdict.tampering]
    bad = [case for case in (*verdict.fail_to_pass, *verdict.broken) if case.outcome != "passed"]
    for case in bad[:SHOWN_TESTS]:
        lines += [f"  {case.name}: {case.outcome}", *(f"    {line}" for line in case.message.splitlines()[-SHOWN_TESTS:])]
    return lines


def _mode(options: dict[str, Any]) -> Any:
    if options["mode"]:
        return options["mode"]
    if options["entry_point"]:
        return "function"
    return "stdin" if options["cases"] else None


def _read(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _read_cases(path: Path | None) -> list[CaseRequest] | None:
    if path is None:
        return None
    try:
        return msgspec.json.decode(_read(path), type=list[CaseRequest])
    except msgspec.MsgspecError as error:
        raise OperatorError(f"{path}: {error}") from None
