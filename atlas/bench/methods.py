"""The rows of a report: greedy, best-of-k, the loop, and baselines that may spend as much as best-of-k did."""

from __future__ import annotations

from collections.abc import Sequence

from atlas.bench.values import Method, PolicyName
from atlas.errors import OperatorError
from atlas.ralph import Policy, Step, mixed
from atlas.types import Attempt, Route

MAX_EQUAL_ATTEMPTS = 50  # of a method that ends by its token budget; chosen
SAMPLED_TEMPERATURE = 0.8  # as the model cards measure pass@k


def standard_methods(*, k: int, attempts: int, max_tokens: int | None = None, thinking: bool = False) -> tuple[Method, ...]:
    """The rows that are measured by default.

    Args:
        k: candidates of best-of-k, and of each attempt of the loop.
        attempts: of the loop.
        max_tokens: per candidate.
        thinking: the model can think: a further baseline does so.
    """
    methods = [
        greedy(max_tokens=max_tokens),
        best_of(k, max_tokens=max_tokens),
        one_repair_at(f"best-of-{k}", max_tokens=max_tokens),
        loop(k, attempts, max_tokens=max_tokens),
    ]
    if thinking:
        methods.insert(3, thinking_at(f"best-of-{k}"))
    return tuple(methods)


def greedy(*, max_tokens: int | None = None) -> Method:
    """One answer at temperature 0."""
    route = Route(k=1, max_attempts=1, temperature=0.0, max_temperature=0.0, max_tokens=max_tokens, thinking=False)
    return Method(name="greedy", title="greedy, one answer", route=route, is_sampled=False)


def best_of(k: int, *, max_tokens: int | None = None) -> Method:
    """So many independent samples, all of them tested; the answer is chosen by visible or self-made tests."""
    route = Route(
        k=k,
        max_attempts=1,
        temperature=SAMPLED_TEMPERATURE,
        max_temperature=SAMPLED_TEMPERATURE,
        is_first_greedy=False,
        max_tokens=max_tokens,
        thinking=False,
    )
    return Method(name=f"best-of-{k}", title=f"best of {k} samples", route=route, until="exhaustive")


def loop(k: int, attempts: int, *, max_tokens: int | None = None) -> Method:
    """As a user's task is solved: up to so many attempts, ended by the first answer that passes."""
    route = Route(k=k, max_attempts=attempts, max_tokens=max_tokens, thinking=False)
    return Method(name="ralph", title=f"the loop: up to {attempts} attempts of {k}", route=route)


def one_repair_at(other: str, *, max_tokens: int | None = None) -> Method:
    """One sample and one repair of it, over and over, until as many tokens are spent as `other` spent on the task."""
    route = Route(
        k=1,
        max_attempts=MAX_EQUAL_ATTEMPTS,
        temperature=SAMPLED_TEMPERATURE,
        temperature_rise=0.0,
        is_first_greedy=False,
        max_tokens=max_tokens,
        thinking=False,
    )
    title = f"sample and repair, tokens of {other}"
    return Method(name="one-repair", title=title, route=route, policy="one_repair", tokens_of=other)


def thinking_at(other: str) -> Method:
    """One answer after thinking, which may be as long as all that `other` wrote on the task."""
    route = Route(k=1, max_attempts=1, is_first_greedy=False, thinking=True)
    return Method(name="thinking", title=f"thinking, tokens of {other}", route=route, tokens_of=other)


def chosen(methods: Sequence[Method], names: Sequence[str]) -> tuple[Method, ...]:
    """The methods of these names, with those whose tokens they need.

    Raises:
        OperatorError: there is none of that name.
    """
    by_name = {method.name: method for method in methods}
    for name in names:
        if name not in by_name:
            raise OperatorError(f"no method is called '{name}'; there are {', '.join(by_name)}")
    wanted = set(names) | {by_name[name].tokens_of for name in names}
    return tuple(method for method in methods if method.name in wanted)


def one_repair(attempts: Sequence[Attempt], route: Route) -> Step:
    """A fresh sample, one repair of it if it failed, then a fresh sample again."""
    if len(attempts) >= route.max_attempts:
        return Step("stop", f"{route.max_attempts} attempts are the most")
    last = attempts[-1] if attempts else None
    failed = [candidate for candidate in last.candidates if candidate.failure is not None] if last else []
    if last is not None and last.action == "fresh" and failed:
        return Step("repair", "one repair of each sample", failed[0].ref)
    return Step("fresh", "another sample" if attempts else "the first attempt")


def policy_of(method: Method) -> Policy:
    policies: dict[PolicyName, Policy] = {"mixed": mixed, "one_repair": one_repair}
    return policies[method.policy]
