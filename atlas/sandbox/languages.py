"""Languages beside Python: how their programs are compiled and run, where this machine has the tool."""

from __future__ import annotations

import shutil

import msgspec

from atlas.errors import BadRequest
from atlas.sandbox.inside.view import ENVIRONMENT

PYTHON = frozenset({"python", "python3", "py"})


class Language(msgspec.Struct, frozen=True, kw_only=True):
    """How a language is compiled and run, in the working directory of a box.

    Attributes:
        tool: program it needs, on the PATH of a box.
        remedy: how to get it.
        compile: command; empty if there is nothing to compile.
    """

    name: str
    aliases: frozenset[str]
    file: str
    tool: str
    remedy: str
    run: tuple[str, ...]
    compile: tuple[str, ...] = ()


LANGUAGES = (
    Language(
        name="JavaScript",
        aliases=frozenset({"javascript", "js", "node"}),
        file="main.js",
        tool="node",
        remedy="apt install nodejs",
        run=("node", "main.js"),
    ),
    Language(
        name="Go",
        aliases=frozenset({"go", "golang"}),
        file="main.go",
        tool="go",
        remedy="apt install golang-go",
        compile=("go", "build", "-o", "main", "main.go"),
        run=("./main",),
    ),
    Language(
        name="Rust",
        aliases=frozenset({"rust", "rs"}),
        file="main.rs",
        tool="rustc",
        remedy="apt install rustc",
        compile=("rustc", "-O", "-o", "main", "main.rs"),
        run=("./main",),
    ),
    Language(
        name="C++",
        aliases=frozenset({"c++", "cpp", "cxx"}),
        file="main.cpp",
        tool="g++",
        remedy="apt install g++",
        compile=("g++", "-O2", "-std=c++17", "-o", "main", "main.cpp"),
        run=("./main",),
    ),
    Language(
        name="C",
        aliases=frozenset({"c"}),
        file="main.c",
        tool="gcc",
        remedy="apt install gcc",
        compile=("gcc", "-O2", "-std=gnu11", "-o", "main", "main.c", "-lm"),
        run=("./main",),
    ),
    Language(
        name="Bash",
        aliases=frozenset({"bash", "sh", "shell"}),
        file="main.sh",
        tool="bash",
        remedy="apt install bash",
        run=("bash", "main.sh"),
    ),
)


def is_python(language: str) -> bool:
    return language.strip().lower() in PYTHON


def find(language: str) -> Language:
    """A language by any of its names, if its tool is here.

    Raises:
        BadRequest: there is no such language, or no tool for it where a box can see it.
    """
    wanted = language.strip().lower()
    for known in LANGUAGES:
        if wanted in known.aliases:
            if tool_path(known) is None:
                raise BadRequest(_missing(known), param="language")
            return known
    names = ", ".join(["Python", *(known.name for known in LANGUAGES)])
    raise BadRequest(f"no language is called {language[:40]!r} here; there are {names}", param="language")


def tool_path(language: Language) -> str | None:
    """Where a box finds the tool."""
    return shutil.which(language.tool, path=ENVIRONMENT["PATH"])


def available() -> tuple[str, ...]:
    """Names of the languages that can be run here."""
    return "Python", *(known.name for known in LANGUAGES if tool_path(known))


def _missing(language: Language) -> str:
    elsewhere = shutil.which(language.tool)
    where = f"; the one at {elsewhere} lies where no box can see it" if elsewhere else ""
    return f"{language.name} needs {language.tool} on {ENVIRONMENT['PATH']}, which this machine lacks{where}: {language.remedy}"
