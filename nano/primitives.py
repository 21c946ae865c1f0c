"""The vocabulary of the synthetic tasks: where numbers come from, what is done to them, what is returned.

Each primitive has its wordings and one expression. `{x}` is an element, `{L}` the list so far, `{k}` a constant of 2..9.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

StageKind = Literal["filter", "map", "list"]


class Primitive(NamedTuple):
    """Wordings of one operation and its Python expression."""

    wordings: tuple[str, ...]
    expression: str

    @property
    def has_constant(self) -> bool:
        return "{k}" in self.expression


class Source(NamedTuple):
    """Where the list of integers comes from; `argument` is the parameter's name, `weight` how often it is drawn."""

    wordings: tuple[str, ...]
    argument: str
    expression: str
    weight: float


SOURCES: dict[str, Source] = {
    "list": Source(("Given a list xs of integers", "From the integer list xs"), "xs", "xs", 8),
    "digits": Source(("From the digits of n", "Using the decimal digits of n"), "n", "[int(c) for c in str(n)]", 2),
    "upto": Source(("From the numbers 1 to n", "Using the integers from 1 through n"), "n", "list(range(1, n + 1))", 2),
    "divisors": Source(
        ("From the divisors of n", "Using all positive divisors of n"), "n", "[d for d in range(1, n + 1) if n % d == 0]", 1.5
    ),
    "lengths": Source(
        ("From the word lengths in s", "Using the length of each word of s"), "s", "[len(w) for w in s.split()]", 1.5
    ),
    "codes": Source(
        ("From the character codes of s", "Using the code point of each character of s"), "s", "[ord(c) for c in s]", 1
    ),
    "rows": Source(("From the row sums of matrix m", "Using the sum of each row of m"), "m", "[sum(r) for r in m]", 1.5),
    "gaps": Source(
        ("From consecutive differences of xs", "Using the gaps between neighbours in xs"),
        "xs",
        "[b - a for a, b in zip(xs, xs[1:])]",
        1.5,
    ),
}

FILTERS: dict[str, Primitive] = {
    "even": Primitive(("keep only the even numbers", "drop the odd numbers", "take the even values"), "{x} % 2 == 0"),
    "odd": Primitive(("keep only the odd numbers", "drop the even numbers", "take the odd values"), "{x} % 2 == 1"),
    "positive": Primitive(("keep only the positive numbers", "remove anything that is zero or negative"), "{x} > 0"),
    "negative": Primitive(("keep only the negative numbers", "remove anything that is zero or positive"), "{x} < 0"),
    "above": Primitive(("keep numbers greater than {k}", "drop values that are at most {k}"), "{x} > {k}"),
    "below": Primitive(("keep numbers less than {k}", "drop values that are at least {k}"), "{x} < {k}"),
    "multiple": Primitive(("keep multiples of {k}", "keep numbers divisible by {k}"), "{x} % {k} == 0"),
    "indivisible": Primitive(("drop multiples of {k}", "remove numbers divisible by {k}"), "{x} % {k} != 0"),
    "nonzero": Primitive(("remove zeros", "drop every zero"), "{x} != 0"),
    "large": Primitive(
        ("keep numbers whose absolute value exceeds {k}", "drop values with magnitude at most {k}"), "abs({x}) > {k}"
    ),
}

MAPS: dict[str, Primitive] = {
    "square": Primitive(("square each number", "replace every value by its square"), "{x} * {x}"),
    "double": Primitive(("double each number", "multiply every value by 2"), "{x} * 2"),
    "add": Primitive(("add {k} to each number", "increase every value by {k}"), "{x} + {k}"),
    "subtract": Primitive(("subtract {k} from each number", "decrease every value by {k}"), "{x} - {k}"),
    "scale": Primitive(("multiply each number by {k}", "scale every value by {k}"), "{x} * {k}"),
    "absolute": Primitive(("take absolute values", "replace each number by its absolute value"), "abs({x})"),
    "negate": Primitive(("negate each number", "flip the sign of every value"), "-{x}"),
    "modulo": Primitive(("take each number modulo {k}", "replace every value by its remainder mod {k}"), "{x} % {k}"),
    "halve": Primitive(("halve each number rounding down", "floor-divide every value by 2"), "{x} // 2"),
    "cube": Primitive(("cube each number", "raise every value to the third power"), "{x} ** 3"),
    "cap": Primitive(("cap every value at {k}", "limit each number to at most {k}"), "min({x}, {k})"),
}

LISTS: dict[str, Primitive] = {
    "ascending": Primitive(("sort ascending", "sort from smallest to largest"), "sorted({L})"),
    "descending": Primitive(("sort descending", "sort from largest to smallest"), "sorted({L}, reverse=True)"),
    "reverse": Primitive(("reverse the order", "reverse the list"), "{L}[::-1]"),
    "unique": Primitive(
        ("remove duplicates keeping order", "keep the first occurrence of each value"), "list(dict.fromkeys({L}))"
    ),
    "head": Primitive(("take the first {k}", "keep only the first {k} items"), "{L}[:{k}]"),
    "skip": Primitive(("skip the first {k}", "drop the first {k} items"), "{L}[{k}:]"),
    "tail": Primitive(("take the last {k}", "keep only the last {k} items"), "{L}[-{k}:]"),
    "second": Primitive(("take every second item", "keep items at even positions"), "{L}[::2]"),
}

STAGES: dict[StageKind, dict[str, Primitive]] = {"filter": FILTERS, "map": MAPS, "list": LISTS}
STAGE_WEIGHTS: dict[StageKind, float] = {"filter": 0.38, "map": 0.38, "list": 0.24}
KIND_OF: dict[str, StageKind] = {name: kind for kind, table in STAGES.items() for name in table}

REDUCERS: dict[str, Primitive] = {
    "sum": Primitive(("return the sum", "return their total"), "sum({L})"),
    "max": Primitive(("return the largest or 0 if empty", "return the maximum with default 0"), "max({L}, default=0)"),
    "min": Primitive(("return the smallest or 0 if empty", "return the minimum with default 0"), "min({L}, default=0)"),
    "count": Primitive(("return how many there are", "return the count"), "len({L})"),
    "distinct": Primitive(("return how many distinct values there are", "return the number of unique values"), "len(set({L}))"),
    "list": Primitive(("return the list", "return the resulting list"), "{L}"),
    "join": Primitive(("return them joined by commas", "return a comma separated string"), "','.join(str(v) for v in {L})"),
    "any": Primitive(("return whether any exceeds {k}", "return True if some value is above {k}"), "any(v > {k} for v in {L})"),
    "all": Primitive(
        ("return whether all are below {k}", "return True if every value is under {k}"), "all(v < {k} for v in {L})"
    ),
    "spread": Primitive(
        ("return the largest minus the smallest, 0 if empty", "return the spread or 0 if empty"),
        "max({L}) - min({L}) if {L} else 0",
    ),
    "tally": Primitive(
        ("return a dict from value to count", "return counts per value as a dict"), "{{v: {L}.count(v) for v in {L}}}"
    ),
    "mean": Primitive(
        ("return the mean rounded down, 0 if empty", "return the integer average or 0 if empty"),
        "sum({L}) // len({L}) if {L} else 0",
    ),
}

NAMES = (
    *("solve", "f", "compute", "process", "run", "calc", "answer", "go", "total", "result", "transform", "evaluate"),
    *("work", "task", "g", "helper", "summarize", "reduce_values", "pick", "measure", "get_value", "build", "check", "find"),
    *("convert", "analyse", "score", "collect", "derive", "main_value", "func", "handle", "count_up", "make", "select", "apply"),
)
OPENINGS = (
    "Write {name}({argument}).",
    "Write a Python function {name}({argument}).",
    "Implement {name}({argument}).",
    "Define the function {name}({argument}).",
)
