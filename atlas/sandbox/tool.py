"""`verify` as a tool for models: the same request and evidence as over HTTP, and the verdict as text."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from atlas.errors import BadRequest
from atlas.mcp import Tool, schema_of
from atlas.sandbox.requests import SHOWN_CHARS, Evidence, RunRequest
from atlas.settings import SandboxSettings
from atlas.types import Execution, Program, RunLimits

DESCRIPTION = (
    "Run code that may be wrong in an isolated sandbox, with tests, and learn what was proved. With `tests`, they import the code"
    " as `solution`; with `entry_point` and `cases` in mode function, a function is called; in mode stdin a program is fed"
    " `cases`; in mode run the code just runs. Success means that at least one test ran and all of them passed, nothing less."
    " There is no network, and nothing is kept from one run to the next."
)


class ToolRequest(RunRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Code, and what is to be found out about it. An unknown field is an error."""

    tests: Annotated[str | None, Meta(description="The same as test_code")] = None

    def plain(self) -> RunRequest:
        """With the tests in the field that they are read from.

        Raises:
            BadRequest: they are given twice.
        """
        if self.tests and self.test_code:
            raise BadRequest("tests: the same as test_code; send one of them", param="tests")
        return msgspec.structs.replace(self, test_code=self.test_code or self.tests)


def verify_tool(run: Callable[[Program, RunLimits], Awaitable[Execution]], settings: SandboxSettings) -> Tool:
    """The tool, which has programs run by `run` within the limits of `settings`."""

    async def call(arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        request = _read(arguments)
        evidence = Evidence.of(await run(request.program(), request.limits(settings)))
        structured: dict[str, Any] = msgspec.to_builtins(evidence)
        return "\n".join(_lines(evidence)), structured

    return Tool("verify", DESCRIPTION, schema_of(ToolRequest), schema_of(Evidence), call)


def _read(arguments: dict[str, Any]) -> RunRequest:
    try:
        return msgspec.convert(arguments, ToolRequest).plain()
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        field = where.strip("`.")
        raise BadRequest(f"{field}: {what}" if field else what, param=field or None) from None


def _lines(evidence: Evidence) -> Iterator[str]:
    """The verdict, and where nothing judged the output, what was written."""
    yield from evidence.lines()
    for name in () if evidence.tests_run else ("stdout", "stderr"):
        if text := getattr(evidence, name):
            yield f"{name}:\n{text[:SHOWN_CHARS]}"
