"""Wrong attempts and what running them really shows: a plausible other program, or broken code and its traceback.

A slip is the one typical confusion of a primitive: the neighbour it is mistaken for. Slips also stand in a stated share of the
corpus' plain answers, because a model that never errs leaves tests, repair and best-of-k nothing to do.
"""

from __future__ import annotations

import linecache
import random
import re
import traceback
from typing import Any

from atlas.types import Failure
from nano.primitives import KIND_OF, REDUCERS, STAGES
from nano.tasks import Program, Step, call_reference, draw_argument, draw_step, function_of

MAX_SHOWN_CHARS = 60  # longer arguments or results are not put into feedback
MISSPELT = {
    "sum": "summ",
    "len": "length",
    "sorted": "sort",
    "max": "maximum",
    "min": "minimum",
    "range": "rnge",
    "abs": "absolute",
}

# fmt: off
SLIPS = {
    "even": "odd", "odd": "even", "positive": "negative", "negative": "positive", "above": "below", "below": "above",
    "multiple": "indivisible", "indivisible": "multiple", "nonzero": "positive", "large": "above",
    "square": "double", "double": "square", "add": "subtract", "subtract": "add", "scale": "add", "absolute": "negate",
    "negate": "absolute", "modulo": "scale", "halve": "double", "cube": "square", "cap": "subtract",
    "ascending": "descending", "descending": "ascending", "reverse": "descending", "unique": "ascending",
    "head": "tail", "skip": "head", "tail": "head", "second": "reverse",
}
REDUCER_SLIPS = {
    "sum": "count", "max": "min", "min": "max", "count": "distinct", "distinct": "count", "list": "join",
    "join": "list", "any": "all", "all": "any", "spread": "max", "tally": "distinct", "mean": "sum",
}
# fmt: on


def slip(program: Program, rng: random.Random, share: float) -> Program:
    """Each step confused with its neighbour with probability `share`, constants kept."""
    stages = [_confuse(step, SLIPS) if rng.random() < share else step for step in program.stages]
    reducer = _confuse(program.reducer, REDUCER_SLIPS) if rng.random() < share else program.reducer
    return program._replace(stages=tuple(stages), reducer=reducer)


def _confuse(step: Step, slips: dict[str, str]) -> Step:
    return step._replace(name=slips[step.name])


def wrong_program(program: Program, rng: random.Random) -> Program:
    """One stage, constant, order or reducer away from `program`."""
    stages = list(program.stages)
    edits = [_change_reducer]
    if stages:
        edits += [_replace_stage, _replace_stage, _drop_stage, _change_constant]
    if len(stages) > 1:
        edits.append(_swap_stages)
    return rng.choice(edits)(program, rng)


def wrong_result(program: Program, wrong: Program, name: str, rng: random.Random, *, tries: int = 8) -> Failure | None:
    """The first drawn argument on which both differ and that is short enough to show."""
    for _ in range(tries):
        argument = draw_argument(program, rng)
        expected, returned = repr(call_reference(program, argument)), repr(call_reference(wrong, argument))
        if expected != returned and len(repr(argument)) + len(expected) + len(returned) < 2 * MAX_SHOWN_CHARS:
            return Failure(call=f"{name}({argument!r})", expected=expected, returned=returned)
    return None


def break_code(source: str, rng: random.Random) -> str:
    """A slip of the keyboard or of memory: name, bracket, colon, attribute."""
    slips = [_misname, _misspell, _unclose, _drop_colon, _call_as_method]
    rng.shuffle(slips)
    return next((broken for slip in slips if (broken := slip(source, rng)) != source), source)


def run_and_catch(source: str, name: str, argument: Any) -> str:
    """The traceback that running our own broken source gives, our frames left out; empty if it runs."""
    linecache.cache["solution.py"] = (len(source), None, source.splitlines(keepends=True), "solution.py")
    try:
        function_of(source, name)(argument)
    except Exception as error:  # any error a slip can cause is the wanted result
        shown = traceback.TracebackException.from_exception(error)
        shown.stack = traceback.StackSummary.from_list([frame for frame in shown.stack if frame.filename == "solution.py"])
        return "".join(shown.format())
    finally:
        linecache.cache.pop("solution.py", None)
    return ""


def _with_stages(program: Program, stages: list[Step]) -> Program:
    return program._replace(stages=tuple(stages))


def _change_reducer(program: Program, rng: random.Random) -> Program:
    name = rng.choice([name for name in REDUCERS if name != program.reducer.name])
    return program._replace(reducer=draw_step(rng, name, reducer=True))


def _replace_stage(program: Program, rng: random.Random) -> Program:
    stages = list(program.stages)
    index = rng.randrange(len(stages))
    name = rng.choice([name for name in STAGES[KIND_OF[stages[index].name]] if name != stages[index].name])
    stages[index] = draw_step(rng, name)
    return _with_stages(program, stages)


def _drop_stage(program: Program, rng: random.Random) -> Program:
    stages = list(program.stages)
    del stages[rng.randrange(len(stages))]
    return _with_stages(program, stages)


def _change_constant(program: Program, rng: random.Random) -> Program:
    stages = [Step(step.name, rng.randint(2, 9)) if step.constant else step for step in program.stages]
    return _with_stages(program, stages)


def _swap_stages(program: Program, rng: random.Random) -> Program:
    stages = list(program.stages)
    index = rng.randrange(len(stages) - 1)
    stages[index], stages[index + 1] = stages[index + 1], stages[index]
    return _with_stages(program, stages)


def _misname(source: str, rng: random.Random) -> str:
    head, mark, last = source.rpartition("return ")
    return head + mark + re.sub(r"\b(ys|xs|n|s|m)\b", rng.choice(("zs", "x", "values", "result")), last, count=1)


def _misspell(source: str, rng: random.Random) -> str:
    found = [name for name in MISSPELT if f"{name}(" in source]
    if not found:
        return source
    name = rng.choice(found)
    return re.sub(rf"\b{name}\(", f"{MISSPELT[name]}(", source, count=1)


def _unclose(source: str, rng: random.Random) -> str:
    closing = [match.start() for match in re.finditer(r"[)\]](?=\n)", source)]
    if not closing:
        return source
    position = rng.choice(closing)
    return source[:position] + source[position + 1 :]


def _drop_colon(source: str, _rng: random.Random) -> str:
    return source.replace("):\n", ")\n", 1)


def _call_as_method(source: str, _rng: random.Random) -> str:
    return re.sub(r"\b(sum|max|min|len)\((ys|xs)\b[^()]*\)", r"\2.\1()", source, count=1)
