"""Tests that the model writes for itself, where nobody gave any. They vote (agreement.py), and are never taken for truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec.structs import replace

from atlas.ralph.asserts import Called, loose_cases
from atlas.ralph.desk import Desk
from atlas.ralph.prompt import write_tests
from atlas.ralph.syntax import definitions, parse
from atlas.types import Prompt, Sampling, SelfTestsWritten, candidate_seed

TEMPERATURE = 0.8  # chosen: several writers are asked because they differ
MAX_TESTS = 24
FIRST_SEED = 127 * 128  # beyond those of the candidates


async def tests_by_model(desk: Desk, entry_point: str) -> tuple[Called, ...]:
    """Distinct cases for a function, in the order in which they came.

    Raises:
        AtlasError: of ours, after several tries.
    """
    texts = await desk.ours("engine", lambda: _texts(desk, _prompt(desk, entry_point)))
    found = [called for text in texts for called in loose_cases(text) if called.name == entry_point]
    distinct = tuple(dict.fromkeys(_leniently(called) for called in found))[:MAX_TESTS]
    desk.emit(SelfTestsWritten(at_s=desk.now_s, num_tests=len(distinct), num_tokens=desk.num_tokens))
    return distinct


def _leniently(called: Called) -> Called:
    """A vote does not depend on how exactly it is counted: 1 is 1.0 here, and sums of floats are close."""
    return called if called.case.compare == "exact" else called._replace(case=replace(called.case, tolerance=1e-6))


def likeliest_name(codes: Sequence[str]) -> str:
    """The function that most programs define, the last one of each; empty if they define none."""
    names = []
    for code in codes:
        tree = parse(code)
        defined = [node.name for node in definitions(tree)] if tree else []
        names += [name for name in defined if not name.lower().startswith("test")][-1:]
    counts = Counter(names)
    return counts.most_common(1)[0][0] if counts else ""


def _prompt(desk: Desk, entry_point: str) -> Prompt:
    route, seed = desk.route, desk.request.seed
    seeds = [None if seed is None else candidate_seed(seed, FIRST_SEED + index) for index in range(route.num_test_writers)]
    return Prompt(
        model=desk.request.model,
        messages=write_tests(desk.request.task, entry_point),
        sampling=tuple(Sampling(temperature=TEMPERATURE, seed=drawn) for drawn in seeds),
        n=route.num_test_writers,
        max_tokens=route.max_tokens,
        thinking=route.thinking,
        deadline_s=desk.left_s,
    )


async def _texts(desk: Desk, prompt: Prompt) -> list[str]:
    group = await desk.tools.generate(prompt)
    texts = []
    try:
        async for generation in group.finished():
            desk.num_tokens += generation.num_tokens
            texts.append(generation.text)
    finally:
        group.cancel()
    return texts
