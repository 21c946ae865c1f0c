"""Edits of candidates: applied exactly, or rejected with a reason that one can act on."""

from __future__ import annotations

import pytest

from atlas.ralph import edit_block
from atlas.sandbox.edits import EDIT_LIMIT_BYTES, apply_edit
from atlas.sandbox.edits_tree import reject
from atlas.types import Edit, EditRejection

FILE = "def area(w, h):\n    return w + h\n\n\ndef edge(w, h):\n    return w + h\n"
FILES = {"shapes.py": FILE, "pkg/dos.py": "a = 1\r\nb = 2\r\n", "pkg/open.py": "x = 1\ny = 2", "Makefile": "all:\n\ttrue\n"}


def edit(text: str, files: dict[str, str] = FILES, protected: dict[str, str] | None = None) -> Edit | EditRejection:
    return apply_edit(text, files.get, lambda path: (protected or {}).get(path, ""))


def changes(text: str, files: dict[str, str] = FILES) -> dict[str, str | None]:
    result = edit(text, files)
    assert isinstance(result, Edit), result
    return result.changes


def rejection(text: str, files: dict[str, str] = FILES, protected: dict[str, str] | None = None) -> EditRejection:
    result = edit(text, files, protected)
    assert isinstance(result, EditRejection), result
    return result


def block(search: str, replace: str) -> str:
    return f"<<<<<<< SEARCH\n{search}=======\n{replace}>>>>>>> REPLACE\n"


def at(path: str, search: str, replace: str) -> str:
    return f"{path}\n{block(search, replace)}"


AREA = block("def area(w, h):\n    return w + h\n", "def area(w, h):\n    return w * h\n")
AREA_FIXED = FILE.replace("w + h", "w * h", 1)


@pytest.mark.parametrize(
    "text",
    [
        f"shapes.py\n{AREA}",
        f"shapes.py\n```python\n{AREA}```\n",
        f"```python\nshapes.py\n{AREA}```\n",
        f"The sum must be a product.\n\n**`shapes.py`**:\n\n```\n{AREA}```\nThat is all.",
        f"### File: ./shapes.py\n{AREA}",
        f"shapes.py\n{AREA}".replace("\n", "\r\n"),
        edit_block("shapes.py", "def area(w, h):\n    return w + h\n", "def area(w, h):\n    return w * h\n"),
        "shapes.py\n```python\n" + AREA_FIXED + "```\n",
        "Here it is:\n\n`shapes.py`\n````\n" + AREA_FIXED + "````\nDone.",
    ],
)
def test_the_same_change_is_understood_in_all_its_spellings(text: str) -> None:
    assert changes(text) == {"shapes.py": AREA_FIXED}


def test_several_blocks_apply_in_order_and_a_path_holds_until_the_next() -> None:
    edge = block("def edge(w, h):\n    return w + h\n", "def edge(w, h):\n    return 2 * (w + h)\n")
    text = f"shapes.py\n{AREA}\nand\n{edge}" + at("Makefile", "\ttrue\n", "\tfalse\n")
    assert changes(text) == {
        "shapes.py": AREA_FIXED.replace("return w + h", "return 2 * (w + h)"),
        "Makefile": "all:\n\tfalse\n",
    }


def test_an_empty_search_makes_a_new_file_which_a_later_block_may_change() -> None:
    text = at("pkg/new.py", "", "a = 1\nb = 2\n") + block("b = 2\n", "b = 3\n")
    assert changes(text) == {"pkg/new.py": "a = 1\nb = 3\n"}
    assert changes(at("pkg/__init__.py", "", "")) == {"pkg/__init__.py": ""}


def test_line_endings_and_a_missing_last_one_stay_as_they_are() -> None:
    assert changes(at("pkg/dos.py", "b = 2\n", "b = 3\nc = 4\n")) == {"pkg/dos.py": "a = 1\r\nb = 3\r\nc = 4\r\n"}
    assert changes(at("pkg/open.py", "y = 2\n", "y = 3\n")) == {"pkg/open.py": "x = 1\ny = 3"}
    assert changes("pkg/dos.py\n```\na = 2\n```\n") == {"pkg/dos.py": "a = 2\r\n"}


def test_one_indentation_missing_everywhere_is_given_back() -> None:
    files = {"a.py": "class A:\n    def f(self):\n        if self:\n            return 1\n"}
    text = at("a.py", "def f(self):\n    if self:\n        return 1\n", "def f(self):\n    return 2\n\n")
    assert changes(text, files) == {"a.py": "class A:\n    def f(self):\n        return 2\n\n"}
    text = at(
        "a.py", "            def f(self):\n                if self:\n", "            def g(self):\n                if self:\n"
    )
    assert changes(text, files) == {"a.py": files["a.py"].replace("f(", "g(")}
    uneven = at("a.py", "def f(self):\n  if self:\n", "pass\n")
    assert rejection(uneven, files).fault == "not_found"


def test_a_divider_in_the_file_itself_is_not_the_blocks_own() -> None:
    files = {"doc.rst": "Heading\n=======\n\nText.\n"}
    text = at("doc.rst", "Heading\n=======\n", "Another\n=======\n")
    assert changes(text, files) == {"doc.rst": "Another\n=======\n\nText.\n"}


def test_what_is_not_there_is_answered_with_what_comes_nearest() -> None:
    found = rejection(at("shapes.py", "def edge(w, h):\n    return w - h\n", "pass\n"))
    assert (found.fault, found.path, found.block) == ("not_found", "shapes.py", 1)
    assert "shapes.py, block 1" in found.message
    assert "    5 | def edge(w, h):" in found.message
    assert "line 2 of it is '    return w - h', where the file has '    return w + h'" in found.message


def test_a_likeness_is_shown_where_no_line_is_the_same() -> None:
    assert "    1 | def area(w, h):" in rejection(at("shapes.py", "def arae(w, h):\n", "pass\n")).message


@pytest.mark.parametrize(
    ("text", "fault", "said"),
    [
        ("I would change the function.", "malformed", "no edit"),
        ("```python\ndef area(w, h):\n    return w * h\n```", "malformed", "no edit"),
        (AREA, "malformed", "which file"),
        ("shapes.py\n<<<<<<< SEARCH\nx\n=======\ny\n", "malformed", "no line '>>>>>>> REPLACE'"),
        ("shapes.py\n<<<<<<< SEARCH\nx\n>>>>>>> REPLACE\n", "malformed", "no line '======='"),
        ("shapes.py\n```python\nx = 1\n", "malformed", "cut off"),
        (at("shapes.py", "    return w + h\n", "x\n"), "ambiguous", "at lines 2, 6"),
        (at("shapes.py", "", "x\n"), "ambiguous", "SEARCH is empty"),
        (at("missing.py", "x\n", "y\n"), "missing", "missing.py, block 1: there is no such file"),
        (at("shapes.py/x.py", "", "y\n") + f"shapes.py\n{AREA}", "exists", "shapes.py is a file"),
        (at("shapes.py", "def area(w, h):\n", "def area(w, h):\n"), "unchanged", "as it is"),
        ("x" * (EDIT_LIMIT_BYTES + 1), "too_large", "characters"),
        (at("big.py", "", "x" * 2_100_000 + "\n"), "too_large", "big.py"),
    ],
)
def test_what_cannot_be_applied_is_rejected_by_name(text: str, fault: str, said: str) -> None:
    found = rejection(text)
    assert found.fault == fault
    assert said in found.message
    assert not found.is_tampering


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../up.py", "pkg/../../up.py", "~/x.py", "C:/x.py", ".git/hooks/pre-commit", "pkg/.GIT/config", "a\\..\\b.py",
     "a\0.py", "a/b.py/", "x/" * 600 + "a.py", "n" * 300 + ".py"],
)  # fmt: skip
def test_a_path_that_leads_elsewhere_is_tampering(path: str) -> None:
    found = rejection(at(path, "", "x\n"))
    assert (found.fault, found.is_tampering) == ("outside", True)
    found = rejection(f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+x\n")
    assert found.fault == "outside"


def test_what_the_verdict_rests_on_is_not_edited() -> None:
    found = rejection(f"shapes.py\n{AREA}", protected={"shapes.py": "it is a test"})
    assert (found.fault, found.path, found.is_tampering) == ("protected", "shapes.py", True)
    assert found.message == "shapes.py: the edit must not change it: it is a test"
    assert rejection(at("conftest.py", "", "x\n"), protected={"conftest.py": "it is a conftest"}).fault == "protected"


def test_a_file_that_cannot_be_edited_is_rejected_in_the_readers_words() -> None:
    def read(path: str) -> str | None:
        raise reject("unsupported", f"{path}: it is not text", path=path)

    found = apply_edit(at("logo.png", "x\n", "y\n"), read)
    assert isinstance(found, EditRejection)
    assert found.message == "logo.png: it is not text"
