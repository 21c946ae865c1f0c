"""Project mode: the task is a change to a repository, judged by the repository's own tests.

The project is seen by its tests at its own path and can be written by them, but nothing of that reaches the disk. Its tests run
twice, without the edit and with it, each time in a box. They share a process with what they test, so a verdict is never sealed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from atlas.errors import BadRequest, SandboxRefused, SandboxUnavailable
from atlas.sandbox.boxes import Boxes, BoxSpec, ProjectMount
from atlas.sandbox.edits import apply_edit
from atlas.sandbox.patches_writing import render_diff
from atlas.sandbox.project_command import (
    Command,
    Interpreter,
    check_directory,
    environment_of,
    files_named,
    find_interpreter,
    parse_command,
    state_of,
    words_of,
)
from atlas.sandbox.project_files import Survey, digest, read_text, survey
from atlas.sandbox.project_results import conclude
from atlas.sandbox.project_rules import DECIDING, Rules, make_rules, text_signs
from atlas.sandbox.project_verdict import compare, compare_status
from atlas.types import EditRejection, ProjectCheck, ProjectRun, ProjectVerdict

MAX_BASELINES = 32
SHOWN_CHARS = 2000
Changes = dict[str, str | None]


class Plan(NamedTuple):
    """A check whose project, command and interpreter were found."""

    check: ProjectCheck
    directory: Path
    command: Command
    python: Interpreter
    environment: tuple[int, ...]
    found: Survey

    @property
    def key(self) -> tuple[Any, ...]:
        """Runs without an edit that share it are one run."""
        check = self.check
        own = (self.found.digest, str(self.directory), self.python, self.environment)
        return (*own, check.tests, check.protected, check.read_only, check.limits)

    def rules(self, before: ProjectRun | None = None) -> Rules:
        """What is protected. A run names the files that hold tests, and plugins of the project, whatever these are called."""
        named = files_named(self.command, self.directory)
        if before is not None:
            named += [case.name.partition("::")[0] for case in (*before.cases, *before.uncollected)]
            helpers = [Path(path) for path in before.helpers]
            named += [str(path.relative_to(self.directory)) for path in helpers if path.is_relative_to(self.directory)]
        return make_rules(self.found, patterns=self.check.protected, named=named)


class Projects:
    """Checks edits of projects; a project's run without an edit is made once. Used from one event loop."""

    def __init__(self, boxes: Boxes) -> None:
        self._boxes = boxes
        self._baselines: OrderedDict[tuple[Any, ...], ProjectRun] = OrderedDict()
        self._locks: dict[tuple[Any, ...], asyncio.Lock] = {}

    async def check(self, check: ProjectCheck) -> ProjectVerdict:
        """Apply the edit to a view of the project, and judge it by the project's tests.

        Raises:
            BadRequest: the project, the command or the interpreter cannot be used, or the tests say nothing without the edit.
            SandboxRefused: this machine's tier cannot show projects.
            SandboxUnavailable: a failure of ours.
        """
        if self._boxes.tier != "native":
            raise SandboxRefused(f"projects are checked in the native tier only; this machine has {self._boxes.tier}")
        plan = await asyncio.to_thread(_plan, check)
        edit = await asyncio.to_thread(_apply, plan, plan.rules())
        if isinstance(edit, EditRejection):
            return self._rejected(edit)
        before = await self._baseline(plan)
        rules = plan.rules(before)
        if rejection := _touches(edit.after, rules):
            return self._rejected(rejection)
        after = await self._run(plan, rules, edit.after)
        await asyncio.to_thread(_ensure_unchanged, plan)
        return self._judge(plan, edit, before, after)

    def _rejected(self, rejection: EditRejection) -> ProjectVerdict:
        verdict = ProjectVerdict(outcome="error", tier=self._boxes.tier, message=rejection.message, rejection=rejection)
        return replace(verdict, outcome="tampered", tampering=(rejection.message,)) if rejection.is_tampering else verdict

    def _judge(self, plan: Plan, edit: Change, before: ProjectRun, after: ProjectRun) -> ProjectVerdict:
        signs = [sign for path, text in edit.after.items() for sign in text_signs(path, edit.before[path], text)]
        if plan.command.mode == "command":
            judged = compare_status(before, after, signs=signs)
        else:
            judged = compare(before, after, fail_to_pass=plan.check.fail_to_pass, signs=signs)
        return ProjectVerdict(
            tier=self._boxes.tier,
            before=replace(before, plugins=(), helpers=()),
            after=replace(after, plugins=(), helpers=()),
            diff=render_diff(edit.before, edit.after),
            changes=edit.after,
            digests={path: digest(text) for path, text in edit.before.items()},
            **judged,
        )

    async def _baseline(self, plan: Plan) -> ProjectRun:
        """The run without the edit.

        Raises:
            BadRequest: it did not come to an end, or no test ran.
            SandboxUnavailable: the machine ended it.
        """
        async with self._locks.setdefault(plan.key, asyncio.Lock()):
            known = self._baselines.get(plan.key)
            run = known or await self._run(plan, plan.rules(), {})
            if known is None:
                _ensure_usable(run, plan)
                self._remember(plan.key, run)
            return run

    def _remember(self, key: tuple[Any, ...], run: ProjectRun) -> None:
        self._baselines[key] = run
        self._baselines.move_to_end(key)
        while len(self._baselines) > MAX_BASELINES:
            self._baselines.popitem(last=False)
        self._locks = {known: lock for known, lock in self._locks.items() if lock.locked()}

    async def _run(self, plan: Plan, rules: Rules, changes: Changes) -> ProjectRun:
        result = await self._boxes.run(_spec(plan, rules, changes))
        return conclude(result, hears_tests=plan.command.mode != "command")


async def check_project(check: ProjectCheck, boxes: Boxes) -> ProjectVerdict:
    """One check; see `Projects.check`, which remembers runs without an edit."""
    return await Projects(boxes).check(check)


class Change(NamedTuple):
    """Texts of the files that an edit changes; None is no file."""

    before: Changes
    after: Changes


def _plan(check: ProjectCheck) -> Plan:
    directory = check_directory(check.directory)
    for path in check.read_only:
        if not Path(path).is_absolute() or Path(path) == Path("/"):
            raise BadRequest(f"read_only = {path!r}: name a place by its absolute path", param="read_only")
    command, python = parse_command(check.tests), find_interpreter(check.python, directory)
    return Plan(check, directory, command, python, state_of(python), survey(directory))


def _apply(plan: Plan, rules: Rules) -> Change | EditRejection:
    edit = apply_edit(plan.check.edit, lambda path: read_text(plan.directory, path), rules.why_protected)
    if isinstance(edit, EditRejection):
        return edit
    return Change({path: read_text(plan.directory, path) for path in edit.changes}, edit.changes)


def _touches(changes: Mapping[str, str | None], rules: Rules) -> EditRejection | None:
    for path in changes:
        if why := rules.why_protected(path):
            return EditRejection(fault="protected", path=path, message=f"{path}: the edit must not change it: {why}")
    return None


def _spec(plan: Plan, rules: Rules, changes: Changes) -> BoxSpec:
    directory, check = str(plan.directory), plan.check
    seen = [path for path in (*plan.python.places, *check.read_only) if not Path(path).is_relative_to(plan.directory)]
    payload = {
        "mode": plan.command.mode,
        "command": words_of(plan.python, plan.command),
        "arguments": plan.command.arguments,
        "path": plan.command.path,
        "python": plan.python.executable,
        "environment": environment_of(plan.python, plan.command),
        "directory": directory,
        "watched": sorted(DECIDING),
        "protected": list(rules.mounted),
        "skipped": [*plan.found.environments, *plan.found.histories],
    }
    mount = ProjectMount(
        directory=directory,
        read_only=tuple(seen),
        shared=plan.found.environments,
        hidden=plan.found.histories,
        protected=rules.mounted,
        changes=changes,
    )
    return BoxSpec(runner="project", payload=payload, limits=check.limits, project=mount)


def _ensure_usable(run: ProjectRun, plan: Plan) -> None:
    """Without a run that says something there is nothing to compare with, and that is not the candidate's doing."""
    if run.outcome == "killed":
        raise SandboxUnavailable("the machine ended the tests without the edit; is there enough memory?")
    if run.outcome in ("passed", "failed", "completed") or (run.outcome == "error" and run.uncollected):
        return
    shown = (run.stderr.strip() or run.stdout.strip())[-SHOWN_CHARS:]
    message = f"the tests of {plan.directory} say nothing without the edit: {run.message}"
    raise BadRequest(f"{message}\n{shown}" if shown else message, param="tests")


def _ensure_unchanged(plan: Plan) -> None:
    if survey(plan.directory).digest != plan.found.digest:
        raise BadRequest(f"{plan.directory} was changed while it was checked; check again", param="directory")
