from __future__ import annotations

import pytest

from tests.conformance.__main__ import LISTED
from tests.conformance.listed import Entry, Outcome, judge, read_listed
from tests.conformance.suites import SUITES

PASSED, FAILED, SKIPPED = Outcome("passed"), Outcome("failed", "assert 1 == 2"), Outcome("skipped", "not here")


def entry(*tests: str) -> Entry:
    return Entry(suite="s", file="f", kind="differs", reason="because", tests=list(tests))


def test_what_passes_and_what_is_listed_is_counted() -> None:
    found = judge({"test_a": PASSED, "test_b": FAILED, "test_c": SKIPPED}, [entry("test_b", "test_c")])
    assert found.passed == ["test_a"]
    assert list(found.listed) == ["test_b", "test_c"]
    assert found.count("differs") == 2
    assert found.count("own", "weights") == 0
    assert not found.faults


@pytest.mark.parametrize("outcome", [FAILED, SKIPPED])
def test_a_test_that_is_not_listed_has_to_pass(outcome: Outcome) -> None:
    [fault] = judge({"test_a": outcome}, []).faults
    assert fault.startswith(f"test_a {outcome.outcome}: ")


def test_a_listed_test_that_passes_is_a_fault() -> None:
    [fault] = judge({"test_a[1]": PASSED, "test_a[2]": FAILED}, [entry("test_a")]).faults
    assert "test_a[1] passes, but is listed" in fault


def test_a_listed_test_that_is_gone_is_a_fault() -> None:
    [fault] = judge({"test_a": PASSED}, [entry("test_b")]).faults
    assert fault == "test_b is listed, but there is no such test"


def test_a_test_is_listed_once() -> None:
    [fault] = judge({"test_a[1]": FAILED}, [entry("test_a"), entry("test_a[1]")]).faults
    assert fault == "test_a[1] is listed 2 times"


@pytest.mark.parametrize("name", ["T::test_a[x-[1]]", "T::test_a", "test_a", "test_a[x-[1]]"])
def test_a_test_is_named_with_or_without_its_class_and_parameters(name: str) -> None:
    assert not judge({"T::test_a[x-[1]]": FAILED}, [entry(name)]).faults


def test_other_parameters_and_classes_are_not_meant() -> None:
    for name in ("U::test_a", "test_a[y]", "T::test_a[y]"):
        assert len(judge({"T::test_a[x]": FAILED}, [entry(name)]).faults) == 2, name


def test_every_entry_names_a_file_that_is_run() -> None:
    files = {(suite.name, file) for suite in SUITES for file in suite.files}
    assert {(found.suite, found.file) for found in read_listed(LISTED)} <= files
