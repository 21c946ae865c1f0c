from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from atlas.engine.gbnf import MAX_BYTES
from atlas.errors import BadRequest
from tests.engine.writer import Writer, ask, tiny_writer

LIST = """
root  ::= "[" ws (item ("," ws item)*)? "]" # a comment
item  ::= [0-9]+ | "\\"" [^"\\n]* "\\""
ws    ::= [ \\t]*
"""


@pytest.fixture(scope="module")
def writer() -> Iterator[Writer]:
    with tiny_writer() as shared:
        yield shared


@pytest.mark.parametrize("text", ["[]", '[1,"é", 22]'])
def test_a_grammar_allows_what_it_describes(writer: Writer, text: str) -> None:
    assert writer.accepts(writer.grammars.compile(ask(grammar=LIST)), text)


@pytest.mark.parametrize("text", ["[", "[1 2]", "x", '["a]'])
def test_a_grammar_allows_nothing_else(writer: Writer, text: str) -> None:
    assert not writer.accepts(writer.grammars.compile(ask(grammar=LIST)), text)


def test_repetitions_are_counted(writer: Writer) -> None:
    grammar = writer.grammars.compile(ask(grammar='root ::= "a"{3,5}'))
    assert [writer.accepts(grammar, "a" * length) for length in range(2, 7)] == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("root ::= this is (not valid GBNF", r"grammar: Expected '\)'"),
        ('item ::= "a"', "No 'root' rule"),
        ("root ::= item", "grammar: "),
        ("nothing of the kind", "grammar: "),
        ('root ::= "a"\n%import common.INT', "grammar: Expected name"),
        ("root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "nested too deeply"),
        ("root ::= " + '"a" ' * MAX_BYTES, "larger than"),
    ],
)
def test_a_wrong_grammar_is_refused_in_words(writer: Writer, text: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message) as refused:
        writer.grammars.compile(ask(grammar=text))
    assert refused.value.param == "grammar"


HOSTILE = {
    "endless repetition": 'root ::= "a"{1,1000000000}',
    "repetition of a rule": 'root ::= x{0,100000}\nx ::= "a" x "b" | ""',
    "nested repetitions": "root ::= a{0,1000}\na ::= b{0,1000}\nb ::= c{0,1000}\nc ::= [a-z]",
    "itself": "root ::= root",
    "itself twice": 'root ::= root root | ""',
    "left recursion": 'root ::= root "a" | "b"',
    "doubling": "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(60)) + '\nr60 ::= "a"',
    "ambiguous doubling": "root ::= r0\n"
    + "\n".join(f"r{i} ::= r{i + 1} | r{i + 1} r{i + 1}" for i in range(30))
    + '\nr30 ::= "a" | [b-z]',
    "many words": "root ::= " + " | ".join(f'"word{i}"' for i in range(5000)),
    "long tails": "root ::= " + " | ".join(f'[^x]* "w{i}"' for i in range(1000)),
    "counted tails": "root ::= " + " | ".join(f'[a-z]{{0,{i}}} "w{i}"' for i in range(500)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_refused_or_works_in_bounded_time(writer: Writer, name: str) -> None:
    started_s = time.monotonic()
    try:
        grammar = writer.grammars.compile(ask(grammar=HOSTILE[name]))
    except BadRequest as error:
        assert len(str(error)) < 500  # noqa: PT017
    else:
        assert grammar is not None
        for seed in range(2):
            _wander(writer, grammar, seed)
    assert time.monotonic() - started_s < 10


def _wander(writer: Writer, grammar: str, seed: int) -> None:
    """Fifty random steps, or until the grammar ends or llguidance gives up on it, which is said and not guessed."""
    rng, matcher = np.random.default_rng(seed), writer.grammars.start(grammar)
    for _ in range(50):
        ids = np.flatnonzero(writer.allowed(matcher))
        if not ids.size or matcher.is_done:
            return
        if not matcher.accept(int(rng.choice(ids))):
            assert matcher.error
            return
