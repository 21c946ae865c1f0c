"""The page Bench, over journals as `atlas bench` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas.bench import Runs
from tests.bench.made_up import keep
from tests.dashboard.site import Site, open_site
from tests.dashboard.test_pages import check_page
from tests.dashboard.test_sandbox_page import text_of


@pytest.fixture
def measured(tmp_path: Path) -> Iterator[Site]:
    """Two benches, the second of them cut off."""
    with open_site(tmp_path) as site:
        keep(Runs(tmp_path / "data"), "monday")
        keep(Runs(tmp_path / "data"), "tuesday", num_records=20)
        site.owner()
        yield site


def page(site: Site, path: str) -> str:
    return text_of(check_page(site.owner(), path))


def test_benches_are_listed_with_what_each_method_solved(measured: Site) -> None:
    shown = page(measured, "/bench")
    assert "monday made up, 8 tasks scripted 56 of 56" in shown
    assert "tuesday made up, 8 tasks scripted 20 of 56" in shown
    assert "greedy, one answer 50.0 % (12.5 to 87.5)" in shown


def test_a_bench_has_its_report_and_says_how_to_go_on_with_it(measured: Site) -> None:
    whole, cut = page(measured, "/bench/monday"), page(measured, "/bench/tuesday")
    for wanted in ("What was solved", "Verified and wrong", "Oracle pass@k", "By group", "Method against method"):
        assert wanted in whole
    assert "solvings." not in whole
    assert "20 of 56 solvings. It runs, or was cut off: the same command with --name tuesday goes on" in cut


def test_two_benches_are_compared_task_by_task(measured: Site) -> None:
    shown = page(measured, "/bench?first=monday&second=tuesday")
    assert "monday:greedy to tuesday:greedy 8 50.0 % 50.0 % +0.0 (+0.0 to +0.0) 0, 0 1" in shown


@pytest.mark.parametrize(("path", "status"), [("/bench/nothing", 404), ("/bench/..%2fsecrets", 404), ("/bench/.hidden", 404)])
def test_what_is_no_bench_is_not_found(measured: Site, path: str, status: int) -> None:
    reply = measured.owner().get(path)
    assert reply.status_code == status
    assert "Traceback" not in reply.text


def test_a_name_that_is_none_is_refused_in_the_comparison(measured: Site) -> None:
    assert "cannot be the name of a bench" in page(measured, "/bench?first=monday&second=../secrets")


def test_a_damaged_file_is_told_and_hides_no_other(measured: Site, tmp_path: Path) -> None:
    folder = Runs(tmp_path / "data").folder("broken")
    folder.mkdir()
    (folder / "records.jsonl").write_text("nonsense\n")
    shown = page(measured, "/bench")
    assert "records.jsonl is not the record of a bench" in shown
    assert "monday" in shown
