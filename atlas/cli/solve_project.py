"""Which files of a project a task is about: those it names, or the one that defines the function that is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from atlas.errors import OperatorError

FILE_LIMIT_BYTES = 200_000
LOOKED_AT = 5_000  # files of a project
PASSED_OVER = frozenset({"venv", "env", "node_modules", "build", "dist", "__pycache__", "tests", "test"})
_PATH = re.compile(r"[\w./-]+\.py\b")


def project_body(
    directory: Path, task: str, *, files: Sequence[str], entry_point: str, tests: str, python: str
) -> dict[str, Any]:
    """The fields of a task that are a project's.

    Raises:
        OperatorError: it is not known which file is to be changed, or one cannot be read.
    """
    directory = directory.absolute()
    names = list(files) or named_in(directory, task) or defining(directory, entry_point)
    if not names:
        raise OperatorError("which file is to be changed? Name it with --file, or the function in it with --name")
    project = {
        "directory": str(directory),
        "tests": tests or "pytest",
        "python": python and str(Path(python).absolute()),  # the server has a directory of its own
    }
    return {"project": project, "context": [_snippet(directory, name) for name in names]}


def named_in(directory: Path, task: str) -> list[str]:
    """Files of the project that the task names by their path."""
    return [name for name in dict.fromkeys(_PATH.findall(task)) if (directory / name).is_file()]


def defining(directory: Path, entry_point: str) -> list[str]:
    """The file that defines this function, unless several do."""
    name = entry_point.rpartition(".")[2]
    if not name:
        return []
    definition = re.compile(rf"^\s*(?:async )?def {re.escape(name)}\b", re.MULTILINE)
    found = [path for path in _sources(directory) if definition.search(_text(path))]
    if len(found) > 1:
        shown = ", ".join(str(path.relative_to(directory)) for path in found[:5])
        raise OperatorError(f"{name} is defined in {len(found)} files ({shown}); say which with --file")
    return [str(path.relative_to(directory)) for path in found]


def _sources(directory: Path) -> Iterator[Path]:
    """Python files, without environments, tests and what is hidden."""
    pending, num_seen = [directory], 0
    while pending and num_seen < LOOKED_AT:
        for path in sorted(pending.pop().iterdir()):
            is_hidden = path.name.startswith(".") or path.name in PASSED_OVER or path.is_symlink()
            if path.is_dir() and not is_hidden:
                pending.append(path)
            elif path.suffix == ".py" and not path.name.startswith("test_"):
                num_seen += 1
                yield path


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.stat().st_size <= FILE_LIMIT_BYTES else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _snippet(directory: Path, name: str) -> dict[str, str]:
    path = directory / name
    if not path.is_file() or not (text := _text(path)):
        raise OperatorError(f"{path} is no file of text of at most {FILE_LIMIT_BYTES} bytes")
    return {"path": name, "text": text}
