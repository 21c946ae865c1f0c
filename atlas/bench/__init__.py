"""What a model and the loop around it are worth, measured on tasks whose hidden tests nobody who answers has seen.

`load_suite` reads tasks, `Bench.measure` solves and grades them into a `Journal` that can be gone on with, and the report
functions turn its records into figures with intervals. Solving and running are arguments; nothing here knows of servers.
"""

from atlas.bench.figures import compare_records, solved_by_method
from atlas.bench.journal import Journal, read_journal
from atlas.bench.methods import best_of, chosen, greedy, loop, standard_methods
from atlas.bench.plots import rate_text
from atlas.bench.report import as_data, as_html, as_table, body_html, difference_line
from atlas.bench.running import Bench
from atlas.bench.runs import Kept, Runs
from atlas.bench.statistics import Difference
from atlas.bench.suites import Shelf, first_of, load_suite
from atlas.bench.values import BenchSettings, Method, Record, Suite

__all__ = [
    "Bench",
    "BenchSettings",
    "Difference",
    "Journal",
    "Kept",
    "Method",
    "Record",
    "Runs",
    "Shelf",
    "Suite",
    "as_data",
    "as_html",
    "as_table",
    "best_of",
    "body_html",
    "chosen",
    "compare_records",
    "difference_line",
    "first_of",
    "greedy",
    "load_suite",
    "loop",
    "rate_text",
    "read_journal",
    "solved_by_method",
    "standard_methods",
]
