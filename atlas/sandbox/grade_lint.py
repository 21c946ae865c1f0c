"""Mode lint."""

from __future__ import annotations

from msgspec.structs import replace

from atlas.errors import BadRequest
from atlas.sandbox.boxes import Boxes, BoxSpec
from atlas.sandbox.outcomes import execution, failed_early, no_result, parse_fault
from atlas.types import Execution, Program, RunLimits

FILE = "solution.py"
BEST = 10.0


async def execute_lint(program: Program, limits: RunLimits, boxes: Boxes) -> Execution:
    """Score the code by pylint; what it and ruff say of it is the output.

    Raises:
        BadRequest: there is no pylint.
        SandboxUnavailable: a failure of ours.
    """
    spec = BoxSpec(runner="lint", payload={}, profile="lint", files=program.files | {FILE: program.code}, limits=limits)
    result = await boxes.run(spec)
    frame = result.frames[0] if result.frames and isinstance(result.frames[0], dict) else {}
    if "missing" in frame:
        raise BadRequest(f"pylint is not installed for {frame['missing']}: pip install pylint", param="mode")
    if fault := parse_fault(frame.get("compile")):
        return replace(failed_early(boxes.tier, result, fault=fault, compiled=False), lint_score=0.0)
    score, messages = frame.get("score"), frame.get("messages")
    if not isinstance(score, float) or not isinstance(messages, list):
        return no_result(boxes.tier, result, message="the linter did not come to its end")
    text = "".join(f"{message}\n" for message in messages)
    return replace(
        execution(boxes.tier, result, outcome="completed"),
        stdout=text,
        lint_score=min(max(score, 0.0), BEST),
    )
