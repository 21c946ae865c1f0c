"""The figures: estimators against counting, verdicts as they are, one real generation."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator

import pytest

from atlas.ralph import solve
from nano.benchmark import load_benchmark
from nano.chat import render
from nano.evaluate import NUM_CANDIDATES, as_table, evaluate, pass_at_k, summarise
from nano.export import GGUF_NAME, MODEL_DIR
from nano.generate import Generator

SUM_OF_SQUARES = "Write f(xs). Given a list xs of integers, square each number, return the sum."


@pytest.mark.parametrize(("num_samples", "num_passed", "k"), [(6, 0, 2), (6, 1, 1), (6, 2, 3), (6, 5, 2), (6, 6, 4)])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_pass(num_samples: int, num_passed: int, k: int) -> None:
    draws = list(itertools.combinations([True] * num_passed + [False] * (num_samples - num_passed), k))
    assert math.isclose(pass_at_k(num_samples, num_passed, k), sum(map(any, draws)) / len(draws))


def test_reference_answers_pass_and_silence_fails() -> None:
    """The evaluator around a generator that writes known answers: references greedily, half of them when sampling."""
    tasks = load_benchmark()[::30]
    references = iter(task.reference("fused") for task in tasks)
    current = ""

    def generate(_prompt: str, *, num_candidates: int, temperature: float, seed: int = 0) -> list[str]:
        nonlocal current
        current = next(references) if temperature == 0 else current
        good = f"<think>\n\n</think>\n\n```python\n{current}```"
        return [good if index % 2 == 0 else "" for index in range(num_candidates)]

    report = summarise(evaluate(generate, tasks, num_seeds=2))
    assert report["cells"]["all"]["greedy"][0] == 1.0
    assert report["cells"]["all"]["pass@1"] == (0.5, 0.5, 0.5)
    assert report["cells"]["all"]["pass@20"][0] == pytest.approx(1.0)
    assert report["pass@1 by sampling seed"] == [0.5, 0.5]
    assert report["outcomes"]["passed"] == len(tasks) * NUM_CANDIDATES
    assert "| held out | 3 |" in as_table({**report, "wall_s": 0})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_card_is_reproduced_from_the_shipped_files() -> None:
    """All figures within three points: kernels of another CPU may round another way, and a draw then differs."""
    from nano.evaluate import evaluate_file

    card = json.loads((MODEL_DIR / "evaluation.json").read_text("utf-8"))
    report = evaluate_file(MODEL_DIR / GGUF_NAME, num_seeds=3)
    assert report["prompt_hash"] == card["prompt_hash"]
    for name, cell in card["cells"].items():
        for figure in ("pass@1", "pass@5"):
            assert report["cells"][name][figure][0] == pytest.approx(cell[figure][0], abs=0.03), (name, figure)


@pytest.fixture(scope="module")
def generator() -> Iterator[Generator]:
    generator = Generator(MODEL_DIR / GGUF_NAME)
    yield generator
    generator.close()


def test_equal_seeds_give_equal_answers_and_other_seeds_others(generator: Generator) -> None:
    prompt = render(solve(SUM_OF_SQUARES))
    first, again, other = (generator.generate(prompt, num_candidates=8, temperature=1.5, seed=seed) for seed in (5, 5, 6))
    assert first == again != other


def test_candidates_of_one_prompt_do_not_disturb_each_other(generator: Generator) -> None:
    prompt = render(solve(SUM_OF_SQUARES))
    (alone,) = generator.generate(prompt, num_candidates=1, temperature=0.0)
    assert set(generator.generate(prompt, num_candidates=20, temperature=0.0)) == {alone}
