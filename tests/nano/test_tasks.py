"""The task generator: deterministic, its styles agree, its tests are separate and mean something."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import pytest

from nano.benchmark import BENCHMARK_FILE, DEPTHS, TASKS_PER_CELL, excluded_programs, freeze, load_benchmark
from nano.mistakes import wrong_program
from nano.primitives import FILTERS, LISTS, MAPS, REDUCERS, SOURCES
from nano.tasks import (
    NUM_HIDDEN,
    NUM_VISIBLE,
    STYLES,
    Task,
    draw_argument,
    draw_program,
    function_of,
    make_task,
    parse_program,
    render,
)

NUM_TASKS = 400
EXAMPLES = Path(__file__).parents[2] / "examples" / "tasks"


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    rng = random.Random(1)
    return [make_task(draw_program(rng, index % 5), index) for index in range(NUM_TASKS)]


def test_the_same_seed_gives_the_same_tasks(tasks: list[Task]) -> None:
    rng = random.Random(1)
    again = [make_task(draw_program(rng, index % 5), index) for index in range(NUM_TASKS)]
    assert again == tasks
    assert [task.hash for task in again] == [task.hash for task in tasks]


def test_another_seed_words_the_same_program_differently() -> None:
    program = draw_program(random.Random(3), 3)
    assert len({make_task(program, seed).prompt for seed in range(20)}) > 10


@pytest.mark.parametrize("style", STYLES)
def test_both_code_styles_return_the_hidden_results(tasks: list[Task], style: str) -> None:
    for task in tasks:
        function = function_of(task.reference("steps" if style == "steps" else "fused"), task.entry_point)
        assert [repr(function(ast.literal_eval(argument))) for argument, _ in task.hidden] == [
            result for _, result in task.hidden
        ]


def test_the_two_styles_are_two_programs(tasks: list[Task]) -> None:
    differing = sum(task.reference("steps") != task.reference("fused") for task in tasks if task.depth >= 2)
    assert differing == sum(task.depth >= 2 for task in tasks)


def test_visible_examples_hold_and_are_not_among_the_hidden_tests(tasks: list[Task]) -> None:
    for task in tasks:
        assert (len(task.visible), len(task.hidden)) == (NUM_VISIBLE, NUM_HIDDEN)
        hidden = {f"{task.entry_point}({argument})" for argument, _ in task.hidden}
        assert not hidden & {example.call for example in task.visible}
        function = function_of(task.reference("steps"), task.entry_point)
        for example in task.visible:
            argument = ast.literal_eval(example.call.removeprefix(task.entry_point))
            assert repr(function(argument)) == example.result


def test_a_program_survives_being_written_down(tasks: list[Task]) -> None:
    assert all(parse_program(task.program.spec) == task.program for task in tasks)


def test_no_two_primitives_share_a_wording() -> None:
    wordings = [words for table in (SOURCES, FILTERS, MAPS, LISTS, REDUCERS) for entry in table.values() for words in entry[0]]
    assert len(wordings) == len(set(wordings))


def test_about_fifteen_percent_of_compositions_are_held_out() -> None:
    rng = random.Random(0)
    drawn = [draw_program(rng, 3).held_out for _ in range(4000)]
    assert 0.13 < sum(drawn) / len(drawn) < 0.17  # 149/1000 expected, five standard deviations


def test_the_benchmark_loads_with_the_hashes_it_was_frozen_with() -> None:
    tasks = load_benchmark()
    for depth in DEPTHS:
        for held_out in (False, True):
            assert sum(task.depth == depth and task.held_out == held_out for task in tasks) == TASKS_PER_CELL
    assert len(excluded_programs()) == len(tasks)


def test_a_changed_benchmark_task_is_refused(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nano.tasks.NUM_HIDDEN", NUM_HIDDEN + 1)
    with pytest.raises(ValueError, match="changed"):
        load_benchmark()


def test_the_frozen_file_is_not_replaced() -> None:
    before = BENCHMARK_FILE.read_bytes()
    with pytest.raises(SystemExit, match="frozen"):
        freeze()
    assert BENCHMARK_FILE.read_bytes() == before


def test_no_constant_answers_a_benchmark_task() -> None:
    for task in load_benchmark():
        results = [result for _, result in task.hidden]
        assert max(map(results.count, results)) <= len(results) * 2 // 3


def test_the_tests_of_the_shipped_example_are_passed_by_no_wrong_program() -> None:
    """Programs that are one step, constant or order away from it, and that really do something else."""
    rng, program = random.Random(1), parse_program("rows > unique > add 6 > positive > reverse > min")
    arguments = [draw_argument(program, rng) for _ in range(500)]
    cases = [node.test for node in ast.parse((EXAMPLES / "rows_tests.txt").read_text()).body if isinstance(node, ast.Assert)]
    given = [(ast.literal_eval(case.left.args[0]), ast.literal_eval(case.comparators[0])) for case in cases]  # type: ignore[attr-defined]  # all are calls
    right = function_of(render(program, "convert", "steps"), "convert")
    assert [right(argument) for argument, _ in given] == [expected for _, expected in given]
    others = {wrong_program(program, rng) for _ in range(1000)}
    wrong = [function_of(render(other, "convert", "steps"), "convert") for other in others]
    wrong = [other for other in wrong if any(repr(other(argument)) != repr(right(argument)) for argument in arguments)]
    assert len(wrong) > 100
    passing = [other for other in wrong if all(repr(other(argument)) == repr(expected) for argument, expected in given)]
    assert len(passing) == 0
