"""The report: one file, readable without its pictures, in both colour schemes."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from msgspec.structs import replace

from atlas.bench import as_data, as_html, as_table
from tests.bench.made_up import METHODS, made_up
from tests.e2e import browser as chrome

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Outline(HTMLParser):
    """Tags and attributes of a page; raises where tags do not close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing() -> None:
    page = as_html(*made_up())
    outline = Outline(page)
    assert not [tag for tag, _ in outline.tags if tag in ("script", "link", "img", "iframe", "object", "use", "image")]
    assert not [
        name for _, attributes in outline.tags for name in attributes if name in ("src", "href", "style") or name[:2] == "on"
    ]
    assert not re.search(r"url\(|@import|https?:", page)


def test_each_picture_says_its_numbers_to_whoever_cannot_see_it() -> None:
    page = as_html(*made_up())
    outline = Outline(page)
    pictures = [attributes for tag, attributes in outline.tags if tag == "svg"]
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(pictures) == 2
    assert len(ids) == len(set(ids))
    for attributes in pictures:
        assert attributes["role"] == "img"
        assert set((attributes["aria-labelledby"] or "").split()) <= set(ids)
    told = re.findall(r"<desc[^>]*>(.*?)</desc>", page)
    assert all(f"{method.title}: 50.0 % (" in told[0] for method in METHODS[:3])
    assert told[1].startswith("k = 1: 50.0 % (")


def test_names_from_outside_are_text_and_never_markup() -> None:
    settings, records = made_up()
    hostile = replace(settings, model="<script>alert(1)</script>", suite='"><img src=x>')
    page = as_html(hostile, [replace(record, group="<b>deep</b>") for record in records])
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;b&gt;deep" in page
    Outline(page)


def test_failures_of_ours_stand_apart_and_change_no_rate() -> None:
    settings, records = made_up()
    sound = [record for record in records if record.failure is None]
    with_failure, without = as_data(settings, records)["methods"]["ralph"], as_data(settings, sound)["methods"]["ralph"]
    assert (with_failure.pop("num_failures_of_ours"), without.pop("num_failures_of_ours")) == (1, 0)
    assert with_failure == without
    assert "1 of 16" in as_html(settings, records)
    assert as_table(settings, records).splitlines()[4].endswith("1")


def test_every_rate_says_its_interval_and_how_it_was_made() -> None:
    data = as_data(*made_up())
    assert data["methods"]["greedy"]["solved"] == {
        "value": 0.5,
        "low": pytest.approx(0.125),
        "high": pytest.approx(0.875),
        "tasks": 8,
        "interval": "bootstrap over tasks",
    }
    assert set(data["pairs"]) >= {"greedy to ralph", "best-of-3 to one-repair"}
    assert data["pairs"]["greedy to ralph"]["difference"] == 0.0


def test_a_bench_without_any_record_is_a_page_too() -> None:
    settings, _ = made_up()
    Outline(as_html(settings, []))
    assert as_data(settings, [])["methods"] == {}
    assert as_table(settings, []).startswith("method")


@pytest.mark.skipif(chrome.MISSING is not None, reason=str(chrome.MISSING))
def test_the_page_has_no_axe_violation_in_light_dark_or_on_a_phone(tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]  # half a megabyte of script

    (tmp_path / "report.html").write_text(as_html(*made_up()), "utf-8")
    with chrome.chromium() as browser:
        for look in chrome.LOOKS:
            context = browser.new_context(color_scheme=look.scheme, viewport={"width": look.width, "height": look.height})
            page = context.new_page()
            page.goto((tmp_path / "report.html").as_uri())
            violations = Axe().run(page).response["violations"]
            assert [f"{one['id']}: {one['nodes'][0]['target']}" for one in violations] == [], look.name
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), look.name
            page.screenshot(path=str(tmp_path / f"{look.name}.png"), full_page=True)
            context.close()
