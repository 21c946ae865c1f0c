"""A bench as a page of its own (no script, nothing from elsewhere), as data, and as a table for a terminal."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from atlas.bench.figures import Figures, compare_records, figures_of
from atlas.bench.plots import Named, curve, intervals, percent, rate_text
from atlas.bench.statistics import Difference, Estimate
from atlas.bench.values import BenchSettings, Record
from atlas.errors import OperatorError

COLUMNS = ("method", "right", "verified", "verified but wrong", "tokens a task", "s a task", "ours failed")


def as_html(settings: BenchSettings, records: Sequence[Record]) -> str:
    """The page; everything in it is escaped."""
    title = f"Bench of {settings.model} on {settings.suite}"
    return _environment().get_template("report.html").render(title=title, body=body_html(settings, records))


def body_html(settings: BenchSettings, records: Sequence[Record]) -> Markup:
    """What is on the page below its title, for a page of somebody else's: headings of level 2, tables, drawings."""
    rows = figures_of(settings, records)
    return Markup(  # noqa: S704  # autoescaped inside
        _environment()
        .get_template("body.html")
        .render(
            facts=_facts(settings),
            rows=rows,
            plots=_plots(rows),
            groups=sorted({group for row in rows for group in row.groups}),
            pairs=method_pairs(settings, records),
        )
    )


def as_data(settings: BenchSettings, records: Sequence[Record]) -> dict[str, Any]:
    """The same figures for programs."""
    return {
        "suite": settings.suite,
        "suite_sha256": settings.suite_sha256,
        "model": settings.model,
        "tasks": settings.num_tasks,
        "seeds": list(settings.seeds),
        "version": settings.version,
        "prompts": settings.prompts,
        "methods": {row.method.name: _row_data(row) for row in figures_of(settings, records)},
        "pairs": {name: pair._asdict() for name, pair in method_pairs(settings, records).items()},
    }


def as_table(settings: BenchSettings, records: Sequence[Record]) -> str:
    """The same for a terminal."""
    rows = figures_of(settings, records)
    lines = [COLUMNS, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    shown = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*shown, *(_oracle_line(row) for row in rows if row.oracle)])


def method_pairs(settings: BenchSettings, records: Sequence[Record]) -> dict[str, Difference]:
    """Every two methods of a bench, on the tasks that both have solved."""
    by_method = {method.name: [record for record in records if record.cell.method == method.name] for method in settings.methods}
    pairs = {}
    for (first, before), (second, after) in itertools.combinations(by_method.items(), 2):
        try:
            pairs[f"{first} to {second}"] = compare_records(before, after)
        except OperatorError:  # nothing in common yet
            continue
    return pairs


def difference_line(name: str, pair: Difference) -> str:
    """A comparison in one line."""
    return (
        f"{name}: {percent(pair.first)} to {percent(pair.second)}, {100 * pair.difference:+.1f} points "
        f"({100 * pair.low:+.1f} to {100 * pair.high:+.1f}) over {pair.n} tasks; first seed: {pair.num_gained} gained, "
        f"{pair.num_lost} lost, p = {pair.p:.2g}"
    )


def _oracle_line(row: Figures) -> str:
    rates = ", ".join(f"pass@{k} {rate_text(rate)}" for k, rate in row.oracle.items())
    return f"oracle, {row.method.title}: {rates}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"rate": rate_text, "percent": percent}
    return environment


def _facts(settings: BenchSettings) -> dict[str, str]:
    return {
        "Suite": settings.suite,
        "Tasks": str(settings.num_tasks),
        "Seeds": ", ".join(map(str, settings.seeds)),
        "Model": settings.model,
        "ATLAS": settings.version,
        "Prompts": settings.prompts,
        "SHA-256 of the suite": settings.suite_sha256,
    }


def _plots(rows: Sequence[Figures]) -> dict[str, Markup]:
    solved = [Named(row.method.title, row.solved) for row in rows]
    plots = {"solved": intervals("Right answers of each method", solved, name="solved")}
    for number, row in enumerate(rows):
        if row.oracle:
            title = f"Oracle pass@k of {row.method.title}"
            plots[row.method.name] = curve(title, row.oracle, name=f"oracle-{number}")
    return plots


def _row_data(row: Figures) -> dict[str, Any]:
    return {
        "title": row.method.title,
        "solved": _rate_data(row.solved),
        "solved_by_seed": list(row.solved_by_seed),
        "verified": _rate_data(row.verified),
        "false_verified": _rate_data(row.false_verified) | {"num_false": row.num_false, "num_verified": row.num_verified},
        "oracle": {str(k): _rate_data(rate) for k, rate in row.oracle.items()},
        "groups": {name: _rate_data(rate) for name, rate in row.groups.items()},
        "num_solvings": row.num_solvings,
        "num_failures_of_ours": row.num_failures,
        "tokens": row.tokens,
        "tokens_per_solved": row.tokens_per_solved,
        "sandbox_s": row.sandbox_s,
        "wall_s": row.wall_s,
    }


def _rate_data(rate: Estimate) -> dict[str, Any]:
    return {"value": rate.value, "low": rate.low, "high": rate.high, "tasks": rate.n, "interval": rate.kind}


def _cells(row: Figures) -> tuple[str, ...]:
    return (
        row.method.name,
        rate_text(row.solved),
        rate_text(row.verified),
        f"{rate_text(row.false_verified)}, {row.num_false} of {row.num_verified}",
        f"{row.tokens:.0f}",
        f"{row.wall_s:.2f}",
        str(row.num_failures),
    )
