from __future__ import annotations

import csv
import io
import json

from atlas.dashboard.people import Names
from atlas.dashboard.usage import csv_lines, heat_map, json_lines, span
from atlas.store import UsageTotal
from atlas.types import Usage
from tests.dashboard.site import Site

NAMES = Names({"usr_1": "ada"}, {"key_1": '=HYPERLINK("http://evil.example")'})


def usage(number: int) -> Usage:
    return Usage(
        request_id=f"req_{number}", at=1_700_000_000.0, owner="usr_1", key_id="key_1", route="/v1/x", model="m", state="completed"
    )


def test_csv_has_a_row_per_request_and_no_formulas() -> None:
    rows = list(csv.DictReader(io.StringIO("".join(csv_lines(iter([usage(1), usage(2)]), NAMES)))))
    assert [row["request_id"] for row in rows] == ["req_1", "req_2"]
    assert rows[0]["user"] == "ada"
    assert rows[0]["time"] == "2023-11-14T22:13:20+00:00"
    assert rows[0]["key"].startswith("'=")


def test_an_export_of_nothing_is_well_formed() -> None:
    assert json.loads("".join(json_lines(iter([]), NAMES))) == []
    assert "".join(csv_lines(iter([]), NAMES)).startswith("time,user,key,request_id")


def test_json_says_the_same_as_the_ledger(used: Site) -> None:
    rows = used.owner().get("/usage/export/json?range=90").json()
    totals = used.store.usage.totals(since=0, until=4e9, group="user")
    assert len(rows) == sum(total.requests for total in totals)
    assert sum(row["prompt_tokens"] for row in rows) == sum(total.prompt_tokens for total in totals)


def test_exports_are_files(used: Site) -> None:
    reply = used.owner().get("/usage/export/csv?range=7")
    assert reply.headers["content-type"].startswith("text/csv")
    assert "attachment; filename=" in reply.headers["content-disposition"]
    assert len(reply.text.splitlines()) > 10


def test_ranges_begin_at_midnight_utc() -> None:
    assert span(1, now=86400 * 10 + 5) == (86400 * 10, 86400 * 11)
    assert span(7, now=86400 * 10 + 5) == (86400 * 4, 86400 * 11)


def test_the_heat_map_puts_hours_where_they_belong() -> None:
    hours = [total("2026-11-16T09:00Z", 3), total("2026-11-23T09:00Z", 1), total("2026-11-22T23:00Z", 1)]
    rows = dict(heat_map(hours))
    assert rows["Mon"][9].requests == 4
    assert rows["Mon"][9].level == 4
    assert rows["Sun"][23].requests == 1
    assert sum(cell.requests for cells in rows.values() for cell in cells) == 5


def total(group: str, requests: int) -> UsageTotal:
    return UsageTotal(
        group=group, requests=requests, failed=0, prompt_tokens=0, cached_tokens=0, completion_tokens=0, cost=0, wall_s=0.0
    )
