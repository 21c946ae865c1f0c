"""Where a benchmark's figures are kept."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write(name: str, report: dict[str, Any]) -> None:
    """results/<date>-<commit>-<name>.json; a further run of the same commit gets a number."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    RESULTS.mkdir(exist_ok=True)
    stem = f"{time.strftime('%Y-%m-%d')}-{commit}-{name}"
    path = next(path for path in _paths(stem) if not path.exists())
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}", file=sys.stderr)


def _paths(stem: str) -> Iterator[Path]:
    yield RESULTS / f"{stem}.json"
    yield from (RESULTS / f"{stem}-{number}.json" for number in count(2))
