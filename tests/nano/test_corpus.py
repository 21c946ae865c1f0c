"""Training records: deterministic, rendered as served, free of what is held back."""

from __future__ import annotations

import ast
import itertools
import random
import re

import pytest

from atlas.ralph import extract_code, prompt_hash
from nano.benchmark import load_benchmark
from nano.chat import EMPTY_THINKING, TEMPLATE_TEXT
from nano.classics import CLASSICS
from nano.corpus import DRAWN, IGNORE, MAKERS, SLIP_SHARE, WRITE, Record, may_train, records, text_of
from nano.mistakes import REDUCER_SLIPS, SLIPS, break_code, run_and_catch, slip, wrong_program, wrong_result
from nano.primitives import KIND_OF, REDUCERS, STAGES
from nano.tasks import Program, Step, draw_argument, draw_program, function_of, render

NUM_RECORDS = 1500


@pytest.fixture(scope="module")
def corpus() -> list[Record]:
    return list(itertools.islice(records(0), NUM_RECORDS))


def test_the_same_seed_gives_the_same_corpus(corpus: list[Record]) -> None:
    assert list(itertools.islice(records(0), 200)) == corpus[:200]
    assert list(itertools.islice(records(1), 200)) != corpus[:200]


def test_no_benchmark_prompt_occurs_in_the_corpus(corpus: list[Record]) -> None:
    texts = "\n".join(map(text_of, corpus))
    assert not [task.prompt for task in load_benchmark() if task.prompt in texts]


def test_benchmark_programs_and_held_out_compositions_may_not_be_trained() -> None:
    assert not any(may_train(task.program) for task in load_benchmark())


def test_no_record_contains_a_benchmark_solution(corpus: list[Record]) -> None:
    """Bodies without the function's name: a program is excluded whatever it is called."""
    trained = {
        body for record in corpus for body in re.findall(r"def \w+(\(.*?)(?:\n```|\n=====|\n\n)", text_of(record), re.DOTALL)
    }
    bodies = {
        task.reference(style)[len("def ") + len(task.entry_point) :].rstrip()
        for task in load_benchmark()
        for style in ("steps", "fused")
    }
    assert trained
    assert not trained & bodies


@pytest.mark.parametrize("kind", list(MAKERS))
def test_every_kind_of_record_asks_and_answers(kind: str) -> None:
    record = MAKERS[kind](random.Random(7))
    assert record[-1].weight == (DRAWN if kind in ("tests", "fill") else WRITE)
    assert record[-1].text.endswith(("<|im_end|>", "<|endoftext|>"))


def test_the_empty_think_block_is_given_about_as_often_as_written(corpus: list[Record]) -> None:
    answers = [record for record in corpus if record[-1].text.endswith("<|im_end|>")]
    written = sum(record[-1].text.startswith(EMPTY_THINKING) for record in answers)
    assert all(text_of(record).count(EMPTY_THINKING) == 1 for record in answers)
    assert 0.42 < written / len(answers) < 0.58  # fair coin: six standard deviations


def test_written_solutions_parse(corpus: list[Record]) -> None:
    codes = [extract_code(record[-1].text) for record in corpus if "SEARCH" not in record[-1].text and "```" in record[-1].text]
    assert len(codes) > NUM_RECORDS / 2
    for code in codes:
        ast.parse(code)


def test_failed_attempts_carry_no_weight() -> None:
    rng = random.Random(2)
    for _ in range(50):
        record = MAKERS["repair"](rng)
        attempts = [segment for segment in record[:-1] if segment.text.startswith("python\ndef")]
        assert attempts
        assert {segment.weight for segment in attempts} == {IGNORE}


def test_broken_code_gives_a_real_traceback_of_its_own_file_only() -> None:
    rng, kinds = random.Random(0), set()
    for _ in range(200):
        program = draw_program(rng)
        source = render(program, "f", "steps")
        trace = run_and_catch(break_code(source, rng), "f", draw_argument(program, rng))
        assert "nano" not in trace
        if trace:
            assert 'File "solution.py"' in trace
            kinds.add(trace.splitlines()[-1].partition(":")[0])
    assert {"SyntaxError", "NameError", "AttributeError"} <= kinds


def test_wrong_results_are_wrong() -> None:
    rng = random.Random(0)
    for _ in range(100):
        program = draw_program(rng)
        wrong = wrong_program(program, rng)
        failure = wrong_result(program, wrong, "f", rng)
        if failure is None:
            continue
        argument = ast.literal_eval(failure.call.removeprefix("f"))
        assert repr(function_of(render(program, "f", "fused"), "f")(argument)) == failure.expected
        assert repr(function_of(render(wrong, "f", "fused"), "f")(argument)) == failure.returned != failure.expected


def test_classic_functions_compile() -> None:
    for classic in CLASSICS:
        assert callable(function_of(classic.source, classic.signature.partition("(")[0]))


def test_known_classics_return_what_they_promise() -> None:
    def run(name: str, *arguments: object) -> object:
        (source,) = [classic.source for classic in CLASSICS if classic.signature.startswith(f"{name}(")]
        return function_of(source, name)(*arguments)

    assert [n for n in range(12) if run("is_prime", n)] == [2, 3, 5, 7, 11]
    assert [run("fibonacci", n) for n in range(7)] == [0, 1, 1, 2, 3, 5, 8]
    assert (run("factorial", 5), run("gcd", 12, 18), run("binary_search", [1, 3, 5], 5)) == (120, 6, 2)
    assert run("fizzbuzz", 5) == ["1", "2", "Fizz", "4", "Buzz"]


def test_the_prompt_hash_is_of_the_form_the_card_carries() -> None:
    assert re.fullmatch(r"\d+-[0-9a-f]{16}", prompt_hash())
    assert "<|im_start|>" in TEMPLATE_TEXT


def test_every_primitive_has_one_slip_of_its_kind_that_takes_a_constant_as_it_does() -> None:
    assert set(SLIPS) == set(KIND_OF)
    assert set(REDUCER_SLIPS) == set(REDUCERS)
    for name, other in SLIPS.items():
        assert name != other
        assert KIND_OF[name] == KIND_OF[other]
        assert STAGES[KIND_OF[name]][name].has_constant == STAGES[KIND_OF[other]][other].has_constant
    assert all(REDUCERS[name].has_constant == REDUCERS[other].has_constant for name, other in REDUCER_SLIPS.items())


def test_the_stated_share_of_steps_slips() -> None:
    rng = random.Random(0)
    programs = [draw_program(rng, 3) for _ in range(2000)]
    pairs = [pair for program in programs for pair in zip(steps(program), steps(slip(program, rng, SLIP_SHARE)), strict=True)]
    assert sum(right != wrong for right, wrong in pairs) / len(pairs) == pytest.approx(SLIP_SHARE, abs=0.015)
    assert all(right.constant == wrong.constant for right, wrong in pairs)


def steps(program: Program) -> tuple[Step, ...]:
    return (*program.stages, program.reducer)
