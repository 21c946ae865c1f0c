"""How ATLAS asks a model: the prompts of one attempt and of its repair, and how code is read from an answer.

Everything here is pure. Nothing is generated, run or stored; a caller renders the messages with the model's own template.
"""

from atlas.ralph.prompt import code_block, edit_block, extract_code, prompt_hash, repair, rewrite, solve, write_tests

__all__ = ["code_block", "edit_block", "extract_code", "prompt_hash", "repair", "rewrite", "solve", "write_tests"]
