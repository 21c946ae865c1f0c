"""Small Python function tasks, made from a seed: source -> up to four stages -> reducer.

A `Program` is what has to be computed; its hash ignores wording, so excluding a hash excludes every paraphrase. A `Task` adds
words, a function name, visible examples and hidden tests, all derived from the program and one seed. `depth` is the number of
stages. 15 % of the stage sequences (of two stages or more) are held out: no training record contains them.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from atlas.types import Example
from nano.primitives import KIND_OF, LISTS, NAMES, OPENINGS, REDUCERS, SOURCES, STAGE_WEIGHTS, STAGES

Style = Literal["steps", "fused"]
STYLES: tuple[Style, ...] = ("steps", "fused")
TRAINED_DEPTH_WEIGHTS = (0.08, 0.24, 0.38, 0.3)  # depths 0..3; depth 4 is never trained
HELD_OUT_BELOW = 38  # of 256: 15 % of stage sequences
NUM_VISIBLE = 3
NUM_HIDDEN = 12
FUSED_LINE_CHARS = 60  # a longer fused expression gets a line of its own


class Step(NamedTuple):
    """One primitive and its constant (0 where it takes none)."""

    name: str
    constant: int = 0


class Program(NamedTuple):
    """What a task computes."""

    source: str
    stages: tuple[Step, ...]
    reducer: Step

    @property
    def depth(self) -> int:
        return len(self.stages)

    @property
    def held_out(self) -> bool:
        names = "|".join(step.name for step in self.stages)
        return self.depth >= 2 and hashlib.sha256(names.encode()).digest()[0] < HELD_OUT_BELOW

    @property
    def spec(self) -> str:
        """The program as one line, such as `list > even > add 3 > sum`."""
        return " > ".join([self.source, *map(_step_text, self.stages), _step_text(self.reducer)])

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.spec.encode()).hexdigest()[:16]


class Task(NamedTuple):
    """A program in words.

    Attributes:
        prompt: what a user would ask.
        visible: examples that may be shown.
        hidden: (argument, result) pairs, both as `repr`; no argument of a visible example occurs in them.
    """

    program: Program
    prompt: str
    entry_point: str
    visible: tuple[Example, ...]
    hidden: tuple[tuple[str, str], ...]

    @property
    def depth(self) -> int:
        return self.program.depth

    @property
    def held_out(self) -> bool:
        return self.program.held_out

    def reference(self, style: Style) -> str:
        return render(self.program, self.entry_point, style)

    @property
    def hash(self) -> str:
        """Freezes words and tests, not only the program."""
        return hashlib.sha256(repr(tuple(self)).encode()).hexdigest()[:16]


def parse_program(spec: str) -> Program:
    """The inverse of `Program.spec`."""
    source, *steps = spec.split(" > ")
    parsed = [Step(name, int(constant or 0)) for name, _, constant in (step.partition(" ") for step in steps)]
    return Program(source, tuple(parsed[:-1]), parsed[-1])


def draw_program(rng: random.Random, depth: int | None = None) -> Program:
    """A random program; without `depth`, one of the trained depths by their weights."""
    if depth is None:
        depth = rng.choices(range(len(TRAINED_DEPTH_WEIGHTS)), TRAINED_DEPTH_WEIGHTS)[0]
    source = rng.choices(list(SOURCES), [source.weight for source in SOURCES.values()])[0]
    stages: list[Step] = []
    while len(stages) < depth:
        kind = rng.choices(list(STAGE_WEIGHTS), list(STAGE_WEIGHTS.values()))[0]
        name = rng.choice(list(STAGES[kind]))
        if not stages or stages[-1].name != name:
            stages.append(draw_step(rng, name))
    return Program(source, tuple(stages), draw_step(rng, rng.choice(list(REDUCERS)), reducer=True))


def draw_step(rng: random.Random, name: str, *, reducer: bool = False) -> Step:
    primitive = REDUCERS[name] if reducer else STAGES[KIND_OF[name]][name]
    return Step(name, rng.randint(2, 9) if primitive.has_constant else 0)


def describe(program: Program, name: str, rng: random.Random) -> str:
    """The program in words; wordings are drawn, the constants are not."""
    source = SOURCES[program.source]
    opening = rng.choice(OPENINGS).format(name=name, argument=source.argument)
    parts = [rng.choice(STAGES[KIND_OF[step.name]][step.name].wordings).format(k=step.constant) for step in program.stages]
    ending = rng.choice(REDUCERS[program.reducer.name].wordings).format(k=program.reducer.constant)
    separator = rng.choice((", ", ", then "))
    return f"{opening} {rng.choice(source.wordings)}, " + separator.join([*parts, ending]) + "."


def make_task(program: Program, seed: int) -> Task:
    """Words, name and tests of a program; equal seeds give equal tasks."""
    rng = random.Random(f"{program.hash}/{seed}")
    name = rng.choice(NAMES)
    prompt = describe(program, name, rng)
    cases = list(_cases(program, rng, NUM_VISIBLE + NUM_HIDDEN))
    visible = tuple(Example(call=f"{name}({argument})", result=result) for argument, result in cases[:NUM_VISIBLE])
    return Task(program, prompt, name, visible, tuple(cases[NUM_VISIBLE:]))


def discriminates(task: Task) -> bool:
    """Whether the hidden tests can tell the program from a constant."""
    results = [result for _, result in task.hidden]
    return max(results.count(result) for result in results) <= len(results) * 2 // 3


def draw_argument(program: Program, rng: random.Random) -> Any:
    """A random argument of the program's source, small enough to read."""
    kind = SOURCES[program.source].argument
    if kind == "n":
        top = 100_000 if program.source == "digits" else 120
        return rng.randint(1, top)
    if kind == "s":
        return " ".join(_word(rng) for _ in range(rng.randint(1, 7)))
    if kind == "m":
        return [[rng.randint(-6, 8) for _ in range(rng.randint(1, 4))] for _ in range(rng.randint(1, 7))]
    return [rng.randint(-12, 15) for _ in range(rng.choice((0, 1, 4, 6, 8, 10, 12)))]


def render(program: Program, name: str, style: Style) -> str:
    """Source text of the program, ending in a newline."""
    body = _steps_body(program) if style == "steps" else _fused_body(program)
    return f"def {name}({SOURCES[program.source].argument}):\n" + "".join(f"    {line}\n" for line in body)


def call_reference(program: Program, argument: Any) -> Any:
    """The program's result, by its step-wise source."""
    return function_of(render(program, "reference", "steps"), "reference")(argument)


def function_of(source: str, name: str) -> Any:
    """Compile our own generated source and return a function of it; never for a model's text."""
    namespace: dict[str, Any] = {}
    exec(compile(source, "solution.py", "exec"), namespace)  # noqa: S102  text of this module's own templates
    return namespace[name]


def _cases(program: Program, rng: random.Random, count: int) -> Iterator[tuple[str, str]]:
    reference = function_of(render(program, "reference", "steps"), "reference")
    seen: set[str] = set()
    while len(seen) < count:
        argument = draw_argument(program, rng)
        if repr(argument) not in seen:
            seen.add(repr(argument))
            yield repr(argument), repr(reference(argument))


def _step_text(step: Step) -> str:
    return f"{step.name} {step.constant}" if step.constant else step.name


def _word(rng: random.Random) -> str:
    return "".join(rng.choice("abcdefghijklmnoprstuw") for _ in range(rng.randint(1, 9)))


def _steps_body(program: Program) -> list[str]:
    """One assignment per stage."""
    current, lines = "xs", []
    if program.source != "list":
        lines.append(f"ys = {SOURCES[program.source].expression}")
        current = "ys"
    for step in program.stages:
        lines.append(f"ys = {_stage_expression(step, current)}")
        current = "ys"
    return [*lines, f"return {_reduce(program.reducer, current)}"]


def _stage_expression(step: Step, current: str) -> str:
    kind = KIND_OF[step.name]
    text = STAGES[kind][step.name].expression.format(x="x", L=current, k=step.constant)
    if kind == "filter":
        return f"[x for x in {current} if {text}]"
    return f"[{text} for x in {current}]" if kind == "map" else text


def _fused_body(program: Program) -> list[str]:
    """Runs of filters and maps become one comprehension each."""
    current, position = SOURCES[program.source].expression, 0
    while position < program.depth:
        step = program.stages[position]
        if step.name in LISTS:
            current = LISTS[step.name].expression.format(L=current, k=step.constant)
            position += 1
        else:
            current, position = _comprehension(program, position, current)
    if REDUCERS[program.reducer.name].expression.count("{L}") > 1 or len(current) > FUSED_LINE_CHARS:
        return [f"ys = {current}", f"return {_reduce(program.reducer, 'ys')}"]
    return [f"return {_reduce(program.reducer, current)}"]


def _comprehension(program: Program, position: int, current: str) -> tuple[str, int]:
    element, conditions = "x", []
    while position < program.depth and (step := program.stages[position]).name not in LISTS:
        kind = KIND_OF[step.name]
        inner = element if re.fullmatch(r"\w+", element) else f"({element})"
        text = STAGES[kind][step.name].expression.format(x=inner, k=step.constant)
        if kind == "filter":
            conditions.append(text)
        else:
            element = text
        position += 1
    suffix = " if " + " and ".join(conditions) if conditions else ""
    return f"[{element} for x in {current}{suffix}]", position


def _reduce(reducer: Step, current: str) -> str:
    return REDUCERS[reducer.name].expression.format(L=current, k=reducer.constant)
