"""`atlas usage`: who used how much, as a table, CSV or JSON."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from atlas.cli.options import json_option, read_settings, settings_options
from atlas.cli.store import ask_store
from atlas.settings import Settings

SECONDS_PER_DAY = 86400.0
COLUMNS = ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens", "cost")


@click.command()
@click.option("--by", "group", type=click.Choice(["day", "hour", "user", "key", "model"]), default="day", show_default=True)
@click.option("--days", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True, help="How far back.")
@click.option("--user", help="Of this user only: username, e-mail address or id.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--requests", "single", is_flag=True, help="Single requests instead of sums, newest first, as CSV or JSON lines.")
@json_option
@settings_options
def usage(
    group: str,
    days: float,
    user: str | None,
    as_csv: bool,
    single: bool,
    as_json: bool,
    config: Path | None,
    data_dir: str | None,
) -> None:
    """Print usage: requests, tokens, cost in millionths.

    \b
    Example:
      atlas usage --by user --days 7
    """
    settings = read_settings(config, data_dir)
    now_s = time.time()
    of_user = {} if user is None else {"user": user}
    if single:
        _print_rows(requests_since(settings, now_s - days * SECONDS_PER_DAY, of_user), as_csv=as_csv)
        return
    params = {"since": now_s - days * SECONDS_PER_DAY, "until": now_s, "group": group, **of_user}
    rows = ask_store(settings, "usage.totals", params)["totals"]
    if as_json:
        print(json.dumps(rows))
    elif as_csv:
        _print_rows(rows, as_csv=True)
    else:
        _print_table(rows)


def requests_since(settings: Settings, since: float, of_user: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Single requests, newest first, asked for page by page."""
    before: tuple[float, str] | None = None
    while page := ask_store(settings, "usage.recent", {"before": before, **of_user})["usage"]:
        for row in page:
            if row["at"] < since:
                return
            yield row
        before = (page[-1]["at"], page[-1]["request_id"])


def _print_rows(rows: Any, *, as_csv: bool) -> None:
    writer: Any = None
    for row in rows:
        if not as_csv:
            print(json.dumps(row))
            continue
        if writer is None:
            writer = csv.DictWriter(sys.stdout, fieldnames=list(row), restval="", extrasaction="ignore")
            writer.writeheader()
        writer.writerow(row)


def _print_table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        print("No usage in this time.", file=sys.stderr)
        return
    width = max(len(str(row["group"])) for row in rows)
    print(" " * width + "".join(f"  {column:>17}" for column in COLUMNS))
    for row in rows:
        print(f"{row['group']:<{width}}" + "".join(f"  {row.get(column, 0):>17,}" for column in COLUMNS))
