"""How ATLAS solves a task: it asks a model, runs what the model wrote, and asks again with what the run showed.

`solve_task(request, tools)` is the loop, as a stream of events that ends with the closed Run; everything with an effect is in
`Tools`. The other names are the prompts of one attempt (`prompt.py`), pure functions that the bundled model's training uses too.
"""

from atlas.ralph.loop import solve_task
from atlas.ralph.prompt import code_block, edit_block, extract_code, prompt_hash, repair, rewrite, solve, write_tests
from atlas.ralph.tools import Tools

__all__ = [
    "Tools",
    "code_block",
    "edit_block",
    "extract_code",
    "prompt_hash",
    "repair",
    "rewrite",
    "solve",
    "solve_task",
    "write_tests",
]
