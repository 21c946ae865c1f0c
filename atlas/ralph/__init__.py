"""How ATLAS solves a task: it asks a model, runs what the model wrote, and asks again with what the run showed.

`solve_task(request, tools)` is the loop, as a stream of events that ends with the closed Run; everything with an effect is in
`Tools`. A chat becomes a Request by `request_of`, if `is_coding_task`; JSON by `TaskRequest`. A Run becomes JSON by `TaskResult`,
and a receipt that others can check. Workers, which solve the tasks of a server, are processes (`run_worker`) that a `Workforce`
keeps running beside it. The other names are the prompts of one attempt (`prompt.py`), pure functions that the bundled model's
training uses too.
"""

from atlas.ralph.bodies import SOLVE, read_correction, read_event, read_request, read_run
from atlas.ralph.classify import is_coding_task, request_of
from atlas.ralph.loop import solve_task
from atlas.ralph.patience import persist
from atlas.ralph.policy import Policy, Step, mixed
from atlas.ralph.process import WorkerOptions, run_worker
from atlas.ralph.prompt import code_block, edit_block, extract_code, prompt_hash, repair, rewrite, solve, write_tests
from atlas.ralph.receipts import check_receipt, issue_receipt, rerun_receipt, signing_key
from atlas.ralph.requests import Correction, Proof, TaskRequest, TaskResult
from atlas.ralph.telling import candidate_name, told
from atlas.ralph.tool import Solved, solve_tool, solved
from atlas.ralph.tools import Tools
from atlas.ralph.workforce import Workforce

__all__ = [
    "SOLVE",
    "Correction",
    "Policy",
    "Proof",
    "Solved",
    "Step",
    "TaskRequest",
    "TaskResult",
    "Tools",
    "WorkerOptions",
    "Workforce",
    "candidate_name",
    "check_receipt",
    "code_block",
    "edit_block",
    "extract_code",
    "is_coding_task",
    "issue_receipt",
    "mixed",
    "persist",
    "prompt_hash",
    "read_correction",
    "read_event",
    "read_request",
    "read_run",
    "repair",
    "request_of",
    "rerun_receipt",
    "rewrite",
    "run_worker",
    "signing_key",
    "solve",
    "solve_task",
    "solve_tool",
    "solved",
    "told",
    "write_tests",
]
