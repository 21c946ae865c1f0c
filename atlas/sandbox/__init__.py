"""Runs code that nobody trusts, and says what was proved by it.

`Sandbox.run(program, limits)` answers with an `Execution` (`types.py`). What the code does wrong is a value in it; what goes
wrong with us is an exception (`SandboxUnavailable`, `SandboxRefused`, `SandboxOverloaded`) and says nothing about the code.
"""

from atlas.sandbox.client import Sandbox
from atlas.sandbox.project_output import make_branch, write_changes
from atlas.sandbox.requests import CaseRequest, Evidence, RunRequest

__all__ = ["CaseRequest", "Evidence", "RunRequest", "Sandbox", "make_branch", "write_changes"]
