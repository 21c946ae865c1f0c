"""Training records: conversations built by the platform's prompt builder and rendered by the shipped chat template.

A record is a list of segments (text, weight): 1 for what the model should write, less for an answer that is mostly chance and for
what it reads, 0 for wrong code and for what it must not imitate. No record contains a held-out composition or a program of the
benchmark, not even as a wrong attempt.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from atlas.ralph import code_block, edit_block, repair, rewrite, solve, write_tests
from atlas.types import Failure, Message, Snippet
from nano.benchmark import excluded_programs
from nano.chat import EMPTY_THINKING, END_OF_TEXT, END_OF_TURN, render
from nano.classics import ASKS, CLASSICS
from nano.mistakes import break_code, run_and_catch, slip, wrong_program, wrong_result
from nano.primitives import NAMES
from nano.tasks import STYLES, Program, Style, Task, describe, draw_argument, draw_program, make_task
from nano.tasks import render as render_program

READ, WRITE, IGNORE = 0.05, 1.0, 0.0
DRAWN = 0.2  # an answer that is mostly chance (arguments of tests, where a gap begins) would drown the rest in noise
SLIP_SHARE = 0.12  # of a first answer's steps; temperature 0.8 makes 7 % of it, 0.2 nothing; docs/nano.md
KIND_WEIGHTS = {"solve": 0.6, "repair": 0.16, "rewrite": 0.07, "tests": 0.02, "dialogue": 0.04, "classic": 0.07, "fill": 0.04}
LAST_KIND_WEIGHTS = {**KIND_WEIGHTS, "lines": 0.5}  # of the last steps: gaps that can be filled for sure
OUR_SYSTEM = solve("")[0].content
OTHER_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful coding assistant.",
    "You write Python code.",
    "You are an expert Python programmer. Answer with code only.",
)
SUFFIXES = (" Only return the code.", " Answer with code only.", " No explanation.", " Reply with the code.")
FOLDERS = ("", "src/", "app/", "lib/")
FILES = ("stats.py", "numbers.py", "tools.py", "main.py", "solution.py", "core.py", "lists.py")

EXCLUDED = excluded_programs()


class Segment(NamedTuple):
    """Text and its loss weight; tokens do not cross segments."""

    text: str
    weight: float


Record = list[Segment]


def records(seed: int, kind_weights: Mapping[str, float] = KIND_WEIGHTS) -> Iterator[Record]:
    """An endless, deterministic stream of records."""
    rng = random.Random(f"corpus/{seed}")
    kinds, weights = list(kind_weights), list(kind_weights.values())
    while True:
        yield MAKERS[rng.choices(kinds, weights)[0]](rng)


def text_of(record: Record) -> str:
    return "".join(segment.text for segment in record)


def may_train(program: Program) -> bool:
    return not program.held_out and program.hash not in EXCLUDED


def draw_trained(rng: random.Random) -> Program:
    while not may_train(program := draw_program(rng)):
        pass
    return program


def solve_record(rng: random.Random) -> Record:
    task = _task(rng)
    return _record(_solve_prompt(rng, task), _solution(task, rng), rng)


def repair_record(rng: random.Random) -> Record:
    """One failed attempt (sometimes two), what its run showed, the fixed code."""
    task, style = _task(rng), rng.choice(STYLES)
    messages = _solve_prompt(rng, task)
    for _ in range(rng.choice((1, 1, 1, 2))):
        bad, failure = _failed_attempt(rng, task, style)
        messages = repair(messages, code_block(bad), failure)
    return _record(messages, code_block(task.reference(style)), rng)


def rewrite_record(rng: random.Random) -> Record:
    """A file of one to three functions, one of which shall do something else."""
    task = _task(rng)
    old = render_program(_near(rng, task.program), task.entry_point, rng.choice(STYLES))
    names = rng.sample([name for name in NAMES if name != task.entry_point], rng.choice((0, 1, 1, 2)))
    functions = [*(_function(rng, name) for name in names), old]
    rng.shuffle(functions)
    file = Snippet(path=_path(rng), text="\n\n".join(functions))
    messages = rewrite(task.prompt, task.entry_point, file, system=_system(rng))
    return _record(messages, edit_block(file.path, old, task.reference(rng.choice(STYLES))), rng)


def tests_record(rng: random.Random) -> Record:
    """Four asserts on the shortest cases, the ones that can be worked out in one's head."""
    task = _task(rng)
    cases = sorted(task.hidden, key=lambda case: len(case[0]) + len(case[1]))[:6]
    asserts = "\n".join(f"assert {task.entry_point}({argument}) == {result}" for argument, result in rng.sample(cases, 4))
    return _record(write_tests(task.prompt, task.entry_point, system=_system(rng)), code_block(asserts), rng, weight=DRAWN)


def dialogue_record(rng: random.Random) -> Record:
    """Several unrelated tasks in one conversation: what long contexts are trained on."""
    task = _task(rng)
    messages = _solve_prompt(rng, task)
    for _ in range(rng.choice((1, 2, 3, 5, 8))):
        answer = Message(role="assistant", content=_solution(task, rng))
        task = _task(rng)
        messages = (*messages, answer, Message(role="user", content=task.prompt))
    return _record(messages, _solution(task, rng), rng, history=WRITE)


def classic_record(rng: random.Random) -> Record:
    classic = rng.choice(CLASSICS)
    ask = rng.choice(ASKS).format(signature=classic.signature, what=rng.choice(classic.wordings))
    return _record(solve(ask + _suffix(rng), system=_system(rng)), code_block(classic.source), rng)


def fill_record(rng: random.Random) -> Record:
    """Fill in the middle: a documented function with one gap anywhere inside its body."""
    name, program = rng.choice(NAMES), draw_trained(rng)
    words = describe(program, name, rng).partition(". ")[2]
    head, _, body = render_program(program, name, rng.choice(STYLES)).partition("\n")
    source = f'{head}\n    """{words}"""\n{body}'
    first = len(head) + len(words) + 12  # behind the docstring
    start, end = sorted((rng.randrange(first, len(source)), rng.randrange(first, len(source) + 1)))
    prefix = f"<|fim_prefix|>{source[:start]}<|fim_suffix|>{source[end:]}<|fim_middle|>"
    return [Segment(prefix, READ), Segment(source[start:end] + END_OF_TEXT, DRAWN)]


def lines_record(rng: random.Random) -> Record:
    """Fill in the middle, of whole lines, often all of the body: what to write follows from the docstring and the rest."""
    name, program = rng.choice(NAMES), draw_trained(rng)
    words = describe(program, name, rng).partition(". ")[2]
    head, *lines = render_program(program, name, rng.choice(STYLES)).splitlines(keepends=True)
    first = rng.randrange(len(lines)) if rng.random() < 0.5 else 0
    last = rng.randrange(first, len(lines)) + 1 if rng.random() < 0.5 else len(lines)
    before, gap, after = "".join(lines[:first]), "".join(lines[first:last]), "".join(lines[last:])
    prefix = f'<|fim_prefix|>{head}    """{words}"""\n{before}<|fim_suffix|>{after}<|fim_middle|>'
    return [Segment(prefix, READ), Segment(gap + END_OF_TEXT, WRITE)]


MAKERS = {
    "solve": solve_record,
    "repair": repair_record,
    "rewrite": rewrite_record,
    "tests": tests_record,
    "dialogue": dialogue_record,
    "classic": classic_record,
    "fill": fill_record,
    "lines": lines_record,
}


def _record(
    messages: tuple[Message, ...], answer: str, rng: random.Random, *, history: float = IGNORE, weight: float = WRITE
) -> Record:
    """Segments of a whole conversation; the empty think block is given in the prompt or written, equally often."""
    is_given = rng.random() < 0.5
    prompt = render(messages, thinking=False if is_given else None)
    written = ("" if is_given else EMPTY_THINKING) + answer + END_OF_TURN
    return [*_history(messages, prompt, history), Segment(written, weight)]


def _history(messages: tuple[Message, ...], prompt: str, weight: float) -> Iterator[Segment]:
    """The prompt, cut so that earlier answers get their own weight.

    An earlier answer's first three characters are never learnt: in the history the template leaves the think block out, and the
    model must not learn to leave it out of a fresh answer.
    """
    done = 0
    for index, message in enumerate(messages):
        if message.role == "assistant":
            start = len(render(messages[:index]))
            end = start + len(message.content) + len(END_OF_TURN)
            yield Segment(prompt[done:start], READ)
            yield Segment(prompt[start : start + 3], IGNORE)
            yield Segment(prompt[start + 3 : end], weight)
            done = end
    yield Segment(prompt[done:], READ)


def _task(rng: random.Random) -> Task:
    return make_task(draw_trained(rng), rng.randrange(2**32))


def _solution(task: Task, rng: random.Random) -> str:
    """A first answer, with the typical slips of a first answer."""
    slipped = slip(task.program, rng, SLIP_SHARE)
    program = slipped if may_train(slipped) else task.program
    return code_block(render_program(program, task.entry_point, rng.choice(STYLES)))


def _solve_prompt(rng: random.Random, task: Task) -> tuple[Message, ...]:
    """The task with any of its slots filled; most are empty, as in a first request."""
    examples = task.visible[: rng.randint(1, 3)] if rng.random() < 0.3 else ()
    context = [Snippet(path=_path(rng), text=_function(rng, rng.choice(NAMES))) for _ in range(_num_snippets(rng))]
    hint = _hint(rng, task) if rng.random() < 0.12 else ""
    return solve(
        task.prompt + _suffix(rng),
        examples=examples,
        doctest=rng.random() < 0.5,
        context=context,
        hint=hint,
        system=_system(rng),
    )


def _failed_attempt(rng: random.Random, task: Task, style: Style) -> tuple[str, Failure]:
    """A third of the failures are crashes, the rest wrong results, most of those by a slip."""
    while True:
        if rng.random() < 1 / 3:
            source = break_code(task.reference(style), rng)
            trace = run_and_catch(source, task.entry_point, draw_argument(task.program, rng))
            if trace:
                return source, Failure(traceback=trace)
        else:
            wrong = _slipped(rng, task.program) if rng.random() < 0.7 else _near(rng, task.program)
            failure = wrong_result(task.program, wrong, task.entry_point, rng)
            if failure:
                return render_program(wrong, task.entry_point, style), failure


def _slipped(rng: random.Random, program: Program) -> Program:
    """A program with one slip or more; the one itself if none of its slips may be trained."""
    drawn = (slip(program, rng, 0.3) for _ in range(20))
    return next((slipped for slipped in drawn if slipped != program and may_train(slipped)), program)


def _near(rng: random.Random, program: Program) -> Program:
    """A program one edit away that may stand in the corpus."""
    while not may_train(near := wrong_program(program, rng)) or near == program:
        pass
    return near


def _function(rng: random.Random, name: str) -> str:
    return render_program(draw_trained(rng), name, rng.choice(STYLES))


def _hint(rng: random.Random, task: Task) -> str:
    """One line of a solution, as a pattern remembered from an earlier one would give."""
    lines = task.reference("steps").splitlines()[1:]
    return f"`{rng.choice(lines).strip()}`"


def _num_snippets(rng: random.Random) -> int:
    return rng.choice((1, 1, 2, 3)) if rng.random() < 0.1 else 0


def _path(rng: random.Random) -> str:
    return rng.choice(FOLDERS) + rng.choice(FILES)


def _suffix(rng: random.Random) -> str:
    return rng.choice(SUFFIXES) if rng.random() < 0.05 else ""


def _system(rng: random.Random) -> str | None:
    """No system message in half of the records, ours in most of the others."""
    drawn = rng.random()
    if drawn < 0.5:
        return None
    return OUR_SYSTEM if drawn < 0.85 else rng.choice(OTHER_SYSTEMS)
