"""The user's own test command and interpreter, as a box is to run them."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Literal, NamedTuple

from atlas.errors import BadRequest
from atlas.sandbox.inside.view import ENVIRONMENT, SYSTEM, covered_by_box, interpreter_paths

Mode = Literal["script", "module", "command"]

ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
PYTHON = re.compile(r"python(\d(\.\d+)?)?$")
REFUSED = ("PATH", "HOME", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONNOUSERSITE")  # they decide which code runs, and where
REFUSED_STARTS = ("LD_", "GLIBC_")
VENVS = (".venv", "venv")
TAKEN = ("/", "/box", "/dev", "/proc", "/run", "/sys", "/etc", "/tmp", *SYSTEM)  # noqa: S108


class Command(NamedTuple):
    """What the box starts.

    Attributes:
        mode: script (pytest), module (python -m pytest), or any other command.
        words: of another command.
        arguments: of pytest.
        path: what PYTHONPATH is to be, for pytest.
    """

    mode: Mode
    words: list[str]
    arguments: list[str]
    environment: dict[str, str]
    path: str = ""


class Interpreter(NamedTuple):
    """The user's. `places` are the absolute paths it is made of."""

    executable: str
    places: tuple[str, ...]


def parse_command(text: str) -> Command:
    """The command as one would type it, without a shell; assignments may stand before it.

    Raises:
        BadRequest: it is empty, not closed, or sets what is not the user's to set.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise BadRequest(f"the test command {text!r} cannot be read: {error}", param="tests") from None
    environment: dict[str, str] = {}
    while words and (found := ASSIGNMENT.match(words[0])):
        environment[found[1]] = found[2]
        words = words[1:]
    if not words:
        raise BadRequest("there is no test command; for example: pytest -k parser", param="tests")
    _check(environment)
    return _classify(words, environment)


def _check(environment: dict[str, str]) -> None:
    for name in environment:
        if name in REFUSED or name.startswith(REFUSED_STARTS):
            raise BadRequest(f"the test command must not set {name}", param="tests")


def _classify(words: list[str], environment: dict[str, str]) -> Command:
    name = words[0].rpartition("/")[2]
    path = environment.get("PYTHONPATH", "")
    others = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    if name in ("pytest", "py.test"):
        return Command("script", words, words[1:], others, path)
    if PYTHON.match(name) and words[1:3] == ["-m", "pytest"]:
        return Command("module", words, words[3:], others, path)
    return Command("command", words, [], environment)


def find_interpreter(given: str, directory: Path) -> Interpreter:
    """The interpreter that is meant.

    Raises:
        BadRequest: there is none.
    """
    if not given:
        given = next((str(directory / name) for name in VENVS if (directory / name / "pyvenv.cfg").exists()), "")
    if not given:
        message = f"{directory} has no .venv; say which interpreter runs its tests (--python, a program or a venv's directory)"
        raise BadRequest(message, param="python")
    path = Path(given).expanduser().absolute()  # links stay: a venv is known by the link one starts
    if path.is_dir():
        path = path / "bin" / "python"
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise BadRequest(
            f"python = {given!r}: {path} is not a program; name an interpreter or a venv's directory", param="python"
        )
    places = interpreter_paths(str(path))
    covered = [place for place in covered_by_box(places) if not Path(place).is_relative_to(directory)]
    if covered:
        message = f"{covered[0]}: tests have a {covered[0][:4]} of their own, so their interpreter must lie elsewhere"
        raise BadRequest(message, param="python")
    return Interpreter(str(path), tuple(places))


def state_of(python: Interpreter) -> tuple[int, ...]:
    """Another one when a package was installed, or taken away."""
    packages = (found for place in python.places for found in sorted(Path(place).glob("lib/python*/site-packages")))
    return tuple(found.stat().st_mtime_ns for found in packages)


def environment_of(python: Interpreter, command: Command) -> dict[str, str]:
    """What the command is started with, beside what every box has."""
    binaries = Path(python.executable).parent
    made = {"PATH": f"{binaries}:{ENVIRONMENT['PATH']}", "PYTHONNOUSERSITE": "1"}
    if (binaries.parent / "pyvenv.cfg").exists():
        made["VIRTUAL_ENV"] = str(binaries.parent)
    return made | command.environment


def words_of(python: Interpreter, command: Command) -> list[str]:
    """The command, with the user's interpreter where it says python."""
    first = python.executable if PYTHON.match(command.words[0]) else command.words[0]
    return [first, *command.words[1:]]


def files_named(command: Command, directory: Path) -> list[str]:
    """Files of the project that the command names: the tests it runs, or what runs them."""
    paths = (os.path.normpath(word.partition("::")[0]) for word in command.words)
    return [path for path in paths if not path.startswith(("-", "/", "..")) and (directory / path).is_file()]


def check_directory(text: str) -> Path:
    """The directory of a project, in its real spelling.

    Raises:
        BadRequest: it cannot be one.
    """
    path = Path(text)
    if not path.is_absolute() or not path.is_dir():
        raise BadRequest(f"{text!r} is not a directory; a project is named by its absolute path", param="directory")
    real = path.resolve()
    if str(real) in TAKEN or str(real).startswith(("/proc/", "/sys/", "/dev/", "/box/", "/run/atlas")):
        raise BadRequest(f"{real} belongs to the system; name the project itself", param="directory")
    return real
