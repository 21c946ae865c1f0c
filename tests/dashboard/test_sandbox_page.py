"""The page Sandbox, over a real pool."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas.sandbox import Sandbox
from atlas.settings import LogSettings, SandboxSettings
from tests.dashboard.site import Site, new_sandbox, open_site, run_some, wait_for
from tests.dashboard.test_events import listening


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Site]:
    """Nothing has been run."""
    with open_site(tmp_path, sandbox=new_sandbox()) as site:
        site.owner()
        yield site


def text_of(html: str) -> str:
    """What the main part of a page says."""
    return " ".join(re.sub(r"<[^>]+>", " ", html.partition("<main")[2]).split())


def page(site: Site) -> str:
    """What the page says once the machine's tiers have been tried out."""
    shown = ""

    def is_told() -> bool:
        nonlocal shown
        shown = text_of(site.owner().get("/sandbox").text)
        return "being tried out" not in shown

    wait_for(is_told, timeout_s=60)
    return shown


def test_the_page_tells_the_tier_and_its_layers(running: Site) -> None:
    shown = page(running)
    assert "native" in shown
    assert "seccomp" in shown
    assert "of 2 slots" in shown


def test_before_the_first_run_the_page_says_how_to_make_one(running: Site) -> None:
    shown = page(running)
    assert "Nothing has been run yet" in shown
    assert "atlas verify solution.py --tests test_solution.py" in shown
    assert f"curl {running.url}/v1/sandbox/execute" in shown


def test_runs_are_counted_by_what_they_showed(running: Site) -> None:
    run_some(running)
    shown = page(running)
    assert re.search(r"passed 2 failed 1 error 1 timeout 1|passed 2 completed 1 failed 1 error 1 timeout 1", shown), shown
    assert "invalid_request 1" in shown
    assert re.search(r"pytest error|pytest passed", shown)


def test_the_page_is_live(running: Site) -> None:
    owner = running.owner()
    with listening(owner, "page=sandbox") as listener:
        wait_for(lambda: "runs" in listener.latest)
        assert "Nothing has been run yet" in listener.latest["runs"]
        running.run_code(running.key().key, code="print('hello')")
        wait_for(lambda: "completed" in listener.latest["runs"])


def test_no_code_and_no_output_is_shown(running: Site) -> None:
    running.run_code(running.key().key, code="print('a very telling ' + 'word')")
    html = running.owner().get("/sandbox").text
    assert "completed" in html
    assert "telling" not in html


def test_a_refusal_is_told_with_its_reason(tmp_path: Path) -> None:
    refusing = Sandbox(SandboxSettings(python="/nonexistent/python"), log_settings=LogSettings(level="error"))
    with open_site(tmp_path, sandbox=refusing) as site:
        shown = page(site)
    assert "Code is refused" in shown
    assert "/nonexistent/python" in shown
    assert "atlas doctor" in shown


def test_a_server_that_may_run_code_unisolated_says_so_on_every_page(tmp_path: Path) -> None:
    with open_site(tmp_path, is_unsafe=True) as site:
        owner = site.owner()
        for path in ("/", "/activity", "/keys", "/sandbox", "/profile"):
            assert "--unsafe-no-sandbox" in owner.get(path).text, path
        assert "--unsafe-no-sandbox" not in site.anybody().get("/signin").text


def test_other_pages_say_nothing_of_the_kind(running: Site) -> None:
    assert "unsafe" not in running.owner().get("/").text
