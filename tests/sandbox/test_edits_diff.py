"""Unified diffs, as git writes them and as models do."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas.sandbox.edits import apply_edit
from atlas.sandbox.patches_writing import _hunks as hunks
from atlas.sandbox.patches_writing import _one_hunk as one_hunk
from atlas.sandbox.patches_writing import render_diff
from atlas.types import Edit, EditRejection
from tests.sandbox.test_edits import changes, rejection

TEXT = "".join(f"line {number}\n" for number in range(1, 21))
FILES = {"a.txt": TEXT, "twice.txt": "x\ny\nz\n" * 2}
HEAD = "--- a/a.txt\n+++ b/a.txt\n"


def hunk(header: str, body: str) -> str:
    return f"{HEAD}{header}\n{body}"


BODY = " line 4\n-line 5\n+LINE 5\n line 6\n"
EXPECTED = {"a.txt": TEXT.replace("line 5", "LINE 5")}


@pytest.mark.parametrize(
    "text",
    [
        hunk("@@ -4,3 +4,3 @@", BODY),
        hunk("@@ -4,3 +4,3 @@ def around():", BODY),
        hunk("@@ -40,3 +44,3 @@", BODY),
        hunk("@@ -4,9 +4,7 @@", BODY),
        hunk("@@ -4 +4 @@", BODY),
        hunk("@@ ... @@", BODY),
        hunk("@@", BODY + "\nThis makes it loud."),
        f"diff --git a/a.txt b/a.txt\nindex 1234567..89abcde 100644\n{hunk('@@ -4,3 +4,3 @@', BODY)}",
        f"Here:\n\n```diff\n{hunk('@@ -4,3 +4,3 @@', BODY)}```\n\n- loud\n+ clear\n",
        hunk("@@ -4,3 +4,3 @@", BODY).replace("\n", "\r\n"),
        hunk("@@ -4,3 +4,3 @@", BODY).replace("a/a.txt", "a.txt").replace("b/a.txt", "a.txt\t2026-01-01 00:00:00.0 +0000"),
        hunk("@@ -4,3 +4,3 @@", BODY).replace("line 4", "line 4  "),
        hunk("@@ -3,5 +3,5 @@", " not there\n" + BODY + " neither\n"),
        hunk("@@ -4,3 +4,3 @@", BODY) + "-- \n2.39.2\n\n",
        hunk("@@ -4,9 +4,3 @@", BODY) + "-- \n2.39.2\n\n",
    ],
)  # fmt: skip
def test_the_same_change_is_understood_however_it_is_written(text: str) -> None:
    assert changes(text, FILES) == EXPECTED


def test_lines_that_occur_twice_are_told_apart_by_the_line_number_or_not_at_all() -> None:
    change = "--- a/twice.txt\n+++ b/twice.txt\n@@ -{},1 +{},1 @@\n-y\n+Y\n"
    assert changes(change.format(5, 5), FILES) == {"twice.txt": "x\ny\nz\nx\nY\nz\n"}
    found = rejection(change.format(4, 4), FILES)
    assert (found.fault, found.block) == ("ambiguous", 1)
    assert "at lines 2, 5" in found.message


def test_numbers_that_are_off_by_the_same_everywhere_still_tell_places_apart() -> None:
    numbered = "".join(f"{'mark' if number % 5 == 0 else number}\n" for number in range(1, 31))
    text = "--- a/n\n+++ b/n\n@@ -3,2 +3,2 @@\n-1\n-2\n+one\n+two\n@@ -12,1 +12,1 @@\n-mark\n+MARK\n"
    after = numbered.splitlines()
    after[0:2], after[9] = ["one", "two"], "MARK"
    assert changes(text, {"n": numbered}) == {"n": "\n".join(after) + "\n"}


def test_new_deleted_and_renamed_files() -> None:
    assert changes("--- /dev/null\n+++ b/n.txt\n@@ -0,0 +1,2 @@\n+a\n+b\n", {}) == {"n.txt": "a\nb\n"}
    assert changes("diff --git a/e.py b/e.py\nnew file mode 100644\nindex 0..e69de29\n", {}) == {"e.py": ""}
    twice = FILES["twice.txt"]
    gone = "--- a/twice.txt\n+++ /dev/null\n@@ -1,6 +0,0 @@\n" + "".join(f"-{line}\n" for line in twice.splitlines())
    assert changes(gone, FILES) == {"twice.txt": None}
    moved = "diff --git a/a.txt b/b/c.txt\nsimilarity index 90%\nrename from a.txt\nrename to b/c.txt\n"
    assert changes(moved, FILES) == {"a.txt": None, "b/c.txt": TEXT}
    edited = f"{moved}--- a/a.txt\n+++ b/b/c.txt\n@@ -4,3 +4,3 @@\n{BODY}"
    assert changes(edited, FILES) == {"a.txt": None, "b/c.txt": EXPECTED["a.txt"]}


def test_a_last_line_without_its_end_is_kept_made_or_unmade() -> None:
    head = "--- a/f\n+++ b/f\n@@ -1 +1 @@\n"
    assert changes(f"{head}-a\n+b\n", {"f": "a"}) == {"f": "b"}
    assert changes(f"{head}-a\n\\ No newline at end of file\n+b\n", {"f": "a"}) == {"f": "b\n"}
    assert changes(f"{head}-a\n+b\n\\ No newline at end of file\n", {"f": "a\n"}) == {"f": "b"}


def test_a_file_with_carriage_returns_keeps_them_under_a_diff_without() -> None:
    assert changes("--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n", {"f": "a\r\nb\r\n"}) == {"f": "a\r\nc\r\n"}


@pytest.mark.parametrize(
    ("text", "fault", "said"),
    [
        (hunk("@@ -4,3 +4,3 @@", BODY.replace("line 5", "line five")), "not_found", "a.txt, hunk 1: its old lines are not in"),
        (hunk("@@ -4,3 +4,3 @@", BODY.replace("line 5", "line five")), "not_found", "    5 | line 5"),
        (hunk("@@", BODY.replace(" line 6", "line 6")), "malformed", "the line 'line 6' begins neither with"),
        (hunk("@@ -1 +1 @@", ""), "malformed", "it has no lines"),
        ("diff --git a/a.txt b/a.txt\n@@ -1 +1 @@\n-a\n+b\n", "malformed", "before any"),
        ("--- /dev/null\n+++ /dev/null\n@@ -1 +1 @@\n-a\n", "malformed", "both sides"),
        (HEAD.replace("a.txt", "no.txt") + "@@ -1 +1 @@\n-a\n+b\n", "missing", "no.txt: there is no such file"),
        ("--- /dev/null\n+++ b/a.txt\n@@ -0,0 +1 @@\n+a\n", "exists", "a.txt: the diff makes this file"),
        ("--- a/a.txt\n+++ /dev/null\n@@ -1 +0,0 @@\n-line 1\n", "not_found", "does not list all"),
        ("diff --git a/a.txt b/twice.txt\nrename from a.txt\nrename to twice.txt\n", "exists", "another file's"),
        (f"{hunk('@@ -4,3 +4,3 @@', BODY)}@@ -4,3 +4,3 @@\n{BODY}", "ambiguous", "change the same lines"),
        (hunk("@@ ... @@", "+new\n"), "ambiguous", "where it belongs"),
        ("diff --git a/a.bin b/a.bin\nBinary files a/a.bin and b/a.bin differ\n", "unsupported", "a.bin"),
        ("diff --git a/l b/l\nnew file mode 120000\n--- /dev/null\n+++ b/l\n@@ -0,0 +1 @@\n+/etc\n", "unsupported", "120000"),
        ("diff --git a/a.txt b/a.txt\nold mode 100644\nnew mode 100755\n", "unsupported", "mode"),
    ],
)  # fmt: skip
def test_a_diff_that_does_not_fit_is_rejected_by_file_and_hunk(text: str, fault: str, said: str) -> None:
    found = rejection(text, FILES)
    assert (found.fault, said in found.message) == (fault, True), found


def test_at_most_two_lines_of_context_may_be_wrong() -> None:
    wrong = "".join(f" wrong {number}\n" for number in range(3))
    assert rejection(hunk("@@ -1,6 +1,6 @@", wrong + BODY), FILES).fault == "not_found"


LINE = st.sampled_from(
    [
        "",
        "a",
        "b",
        " a",
        "-a",
        "+b",
        "-- a",
        "++ b",
        "@@ -1 +1 @@",
        "\ta",
        "a\r",
        "```",
        "diff --git a/f b/f",
        "\\ No",
        "\x0c",
        "é",
    ]
)
MARK = st.sampled_from(
    ["--- a/f", "+++ b/f", "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE", "f", "@@", "@@ -0,0 +1 @@", "--- /dev/null"]
)
TEXTS = st.lists(LINE, max_size=12).flatmap(lambda lines: st.sampled_from(["\n".join(lines), "\n".join(lines) + "\n"]))


def apply(text: str, before: str | None) -> Edit | EditRejection:
    return apply_edit(text, {"f": before}.get)


@given(TEXTS, TEXTS)
@settings(max_examples=400)
def test_the_diff_of_two_texts_turns_the_one_into_the_other(before: str, after: str) -> None:
    result = apply(render_diff({"f": before}, {"f": after}), before)
    if before == after:
        assert isinstance(result, EditRejection)
    else:
        assert result == Edit(changes={"f": after})


@given(TEXTS, TEXTS, st.integers(1, 99))
@settings(max_examples=200)
def test_wrong_counts_never_make_another_text_than_the_right_ones(before: str, after: str, wrong: int) -> None:
    """Rejected, or the same; lines that look like headers need their counts, and are left out."""
    text = render_diff({"f": before}, {"f": after})
    if before == after or any(mark in before + after for mark in ("-- a", "++ b", "@@", "diff", "\\")):
        return
    result = apply("\n".join(_miscounted(line, wrong) for line in text.split("\n")), before)
    if isinstance(result, Edit):
        assert result == Edit(changes={"f": after})


def _miscounted(line: str, wrong: int) -> str:
    return line.replace(" @@", f"{wrong} @@") if line.startswith("@@") else line


@given(TEXTS, TEXTS)
@settings(max_examples=100)
def test_a_change_too_large_to_compare_is_one_hunk_that_applies(before: str, after: str) -> None:
    lines = [text.splitlines(keepends=True) if "\x0c" not in text and "\r" not in text else [] for text in (before, after)]
    if lines[0] == lines[1]:
        return
    text = "--- a/f\n+++ b/f\n" + "".join(one_hunk(*lines))
    assert apply(text, "".join(lines[0])) == Edit(changes={"f": "".join(lines[1])})


@given(st.text() | st.lists(LINE | MARK, max_size=20).map("\n".join), TEXTS)
@settings(max_examples=600)
def test_no_text_ever_raises(text: str, before: str) -> None:
    assert isinstance(apply(text, before), Edit | EditRejection)


@given(TEXTS, st.none() | TEXTS, st.none() | TEXTS)
@settings(max_examples=40)
def test_git_applies_what_is_written_here(
    tmp_path_factory: pytest.TempPathFactory, one: str, two: str | None, three: str | None
) -> None:
    before, after = {"d/é f": one, "g": two}, {"d/é f": three, "g": one}
    text = render_diff(before, after)
    directory = tmp_path_factory.mktemp("git")
    _write(directory, before)
    if text:
        command = ["git", "apply", "--whitespace=nowarn", "-"]
        done = subprocess.run(command, input=text.encode(), cwd=directory, capture_output=True, check=False)
        assert done.returncode == 0, (done.stderr, text)
    assert _read(directory, after) == after


def _write(directory: Path, files: dict[str, str | None]) -> None:
    for path, text in files.items():
        if text is not None:
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(text.encode())


def _read(directory: Path, files: dict[str, str | None]) -> dict[str, str | None]:
    return {path: (directory / path).read_bytes().decode() if (directory / path).exists() else None for path in files}


def test_a_long_text_of_the_same_line_is_searched_in_no_time() -> None:
    text = "--- a/f\n+++ b/f\n@@ ... @@\n" + "-\n" * 40_000 + "+x\n"
    assert rejection(text, {"f": "\n" * 400_000 + "end\n"}).fault == "ambiguous"
    assert list(hunks(["a\n"], ["a\n"])) == []
