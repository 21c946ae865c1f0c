"""Runs code that nobody trusts, and says what was proved by it.

`Sandbox.run(program, limits)` answers with an `Execution` (`types.py`). What the code does wrong is a value in it; what goes
wrong with us is an exception (`SandboxUnavailable`, `SandboxRefused`, `SandboxOverloaded`) and says nothing about the code.
"""

from atlas.sandbox.client import Sandbox
from atlas.sandbox.project_output import make_branch, write_changes
from atlas.sandbox.requests import CaseRequest, Evidence, RunRequest
from atlas.sandbox.tool import verify_tool

__all__ = ["CaseRequest", "Evidence", "RunRequest", "Sandbox", "make_branch", "verify_tool", "write_changes"]
