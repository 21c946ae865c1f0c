"""What the model reads: every prompt this project writes is built here, from pure functions on `Message` values.

The bundled model is trained on exactly these texts, so a changed word here means another training run. `prompt_hash` stands for
all of them; the model card carries the hash it was trained with and a test compares the two.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from atlas.types import Case, Example, Failure, Message, Snippet

PROMPT_VERSION = 1

SYSTEM = "You are ATLAS, a coding assistant. Answer with one Python code block and nothing else."
CONTEXT = "These snippets may help:\n\n{snippets}\n\n"
SNIPPET = "{path}\n```python\n{text}\n```"
EXAMPLES = "\n\nExamples:\n{examples}"
HINT = "\n\nHint: {hint}"
WRITE_TESTS = "Write {num_tests} assert statements that test {entry_point}. Do not write the function.\n\n{task}"
REWRITE = "{path}\n```python\n{source}\n```\n\nRewrite the function {entry_point} as one SEARCH/REPLACE block. {task}"
EDIT = "{path}\n```python\n<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE\n```"
WRONG_RESULT = "This test fails:\n\nassert {call} == {expected}\n- expected {expected}\n+ returned {returned}\n\nFix the code."
CRASH = "The code fails:\n\n{traceback}\n\nFix the code."

# Not in the hash: the bundled model was not trained on these.
PROGRAM = "\n\nWrite a program that reads from standard input and writes to standard output."
PROGRAM_EXAMPLE = "\n\nInput:\n{given}\n\nOutput:\n{expected}"
NAME = "\n\nName it {entry_point}."
CHANGE = "{files}\n\n{task}\n\nAnswer with SEARCH/REPLACE blocks in this form:\n\n{form}"
ANOTHER_PLAN = "the usual solutions to this were wrong. Plan the steps in comments, another way than usual, then write the code."

CODE_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


def solve(
    task: str,
    *,
    examples: Sequence[Example] = (),
    doctest: bool = False,
    context: Sequence[Snippet] = (),
    hint: str = "",
    system: str | None = SYSTEM,
) -> tuple[Message, ...]:
    """Ask for the code of a task.

    Args:
        task: the task in the user's words.
        examples: visible examples, shown as asserts.
        doctest: show the examples as doctest lines instead.
        context: retrieved snippets, shown before the task.
        hint: one line from an earlier solution or a person.
        system: None leaves the system message out, as most clients do.
    """
    return _conversation(system, _context(context) + task + _examples(examples, doctest=doctest) + _hint(hint))


def write_tests(task: str, entry_point: str, *, num_tests: int = 4, system: str | None = SYSTEM) -> tuple[Message, ...]:
    """Ask for asserts on `entry_point`; the answer's expected values are the model's belief, not truth."""
    return _conversation(system, WRITE_TESTS.format(num_tests=num_tests, entry_point=entry_point, task=task))


def rewrite(task: str, entry_point: str, file: Snippet, *, system: str | None = SYSTEM) -> tuple[Message, ...]:
    """Ask for one function of `file` to be rewritten; the answer is one block as `edit_block` writes it."""
    return _conversation(
        system, REWRITE.format(path=file.path, source=file.text.rstrip("\n"), entry_point=entry_point, task=task)
    )


def repair(messages: Sequence[Message], answer: str, failure: Failure) -> tuple[Message, ...]:
    """Continue a conversation whose last `answer` failed: the answer, then what its run really showed."""
    feedback = Message(role="user", content=_feedback(failure))
    return (*messages, Message(role="assistant", content=answer), feedback)


def code_block(code: str) -> str:
    """The form of an answer that is code."""
    return "```python\n" + code.rstrip("\n") + "\n```"


def edit_block(path: str, search: str, replace: str) -> str:
    """The form of an answer that changes part of a file."""
    return EDIT.format(path=path, search=search.rstrip("\n"), replace=replace.rstrip("\n"))


def extract_code(answer: str) -> str:
    """Code of the answer's last fenced block, or the whole answer where there is no fence."""
    blocks: list[str] = CODE_BLOCK.findall(answer)
    return blocks[-1] if blocks else answer


def prompt_hash() -> str:
    """Version and digest of everything the builders above can emit, templates and the way they are joined."""
    texts = [f"{message.role}\n{message.content}" for messages in _specimens() for message in messages]
    digest = hashlib.sha256("\0".join([*texts, edit_block("p", "s", "r"), code_block("c")]).encode())
    return f"{PROMPT_VERSION}-{digest.hexdigest()[:16]}"


def program_task(task: str, examples: Sequence[Case]) -> str:
    """A task for a whole program, with examples of input and output."""
    shown = [
        PROGRAM_EXAMPLE.format(given=(case.stdin or "").rstrip("\n"), expected=case.expected.rstrip("\n")) for case in examples
    ]
    return task + PROGRAM + "".join(shown)


def named_task(task: str, entry_point: str) -> str:
    """A task that does not say what the function is to be called."""
    return task + NAME.format(entry_point=entry_point)


def change(task: str, files: Sequence[Snippet], *, system: str | None = SYSTEM) -> tuple[Message, ...]:
    """Ask for a change to some files, as blocks that `edit_block` writes."""
    shown = "\n\n".join(SNIPPET.format(path=file.path, text=file.text.rstrip("\n")) for file in files)
    form = edit_block("path/to/file.py", "lines as they are", "lines as they should be")
    return _conversation(system, CHANGE.format(files=shown, task=task, form=form))


def another_plan(hint: str = "") -> str:
    """A hint that asks for another way, after one the user gave."""
    return f"{hint.rstrip('. ')}. {ANOTHER_PLAN[0].upper()}{ANOTHER_PLAN[1:]}" if hint else ANOTHER_PLAN


def _conversation(system: str | None, user: str) -> tuple[Message, ...]:
    asked = Message(role="user", content=user)
    return (asked,) if system is None else (Message(role="system", content=system), asked)


def _context(snippets: Sequence[Snippet]) -> str:
    shown = [SNIPPET.format(path=snippet.path, text=snippet.text.rstrip("\n")) for snippet in snippets]
    return CONTEXT.format(snippets="\n\n".join(shown)) if shown else ""


def _examples(examples: Sequence[Example], *, doctest: bool) -> str:
    form = ">>> {call}\n{result}" if doctest else "assert {call} == {result}"
    shown = [form.format(call=example.call, result=example.result) for example in examples]
    return EXAMPLES.format(examples="\n".join(shown)) if shown else ""


def _hint(hint: str) -> str:
    return HINT.format(hint=hint) if hint else ""


def _feedback(failure: Failure) -> str:
    if failure.traceback:
        return CRASH.format(traceback=failure.traceback.rstrip("\n"))
    return WRONG_RESULT.format(call=failure.call, expected=failure.expected, returned=failure.returned)


def _specimens() -> tuple[tuple[Message, ...], ...]:
    examples = (Example(call="f(1)", result="2"), Example(call="f(2)", result="3"))
    snippets = (Snippet(path="a.py", text="a = 1\n"), Snippet(path="b.py", text="b = 2"))
    full = solve("task", examples=examples, context=snippets, hint="hint")
    return (
        full,
        solve("task", examples=examples, doctest=True, system=None),
        write_tests("task", "f"),
        rewrite("task", "f", snippets[0]),
        repair(full, "answer", Failure(call="f(1)", expected="2", returned="1")),
        repair(full, "answer", Failure(traceback="Traceback\n")),
    )
