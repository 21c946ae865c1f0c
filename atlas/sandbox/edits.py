"""Edits that a candidate proposes: search/replace blocks, a unified diff, or whole files. Applied as a whole, or rejected.

Pure: files are read through a function, and nothing is written. The three forms, told apart by what stands in the text:

    path/to/file.py                     --- a/path/to/file.py              path/to/file.py
    <<<<<<< SEARCH                      +++ b/path/to/file.py              ```python
    lines that are there                @@ -1,2 +1,2 @@                    all of it
    =======                              context                           ```
    lines to stand there                -old
    >>>>>>> REPLACE                     +new

Fences around them are overlooked, as is what is said in between.
"""

from __future__ import annotations

from collections.abc import Callable

from atlas.sandbox import edits_blocks, patches, patches_parsing
from atlas.sandbox.edits_tree import Read, Rejected, Tree, reject
from atlas.types import Edit, EditRejection

EDIT_LIMIT_BYTES = 4 * 1024 * 1024
MAX_FILES = 200
FORMS = "SEARCH/REPLACE blocks, a unified diff, or a path and a fenced block with the whole file"


def apply_edit(text: str, read: Read, is_protected: Callable[[str], str] = lambda path: "") -> Edit | EditRejection:
    """What the project's files become.

    Args:
        text: what the candidate wrote.
        read: text of the file at a relative path, None if there is none. Raises `Rejected` for what must not be edited.
        is_protected: why the file at this path must stay as it is; empty if it need not.
    """
    tree = Tree(read, is_protected)
    try:
        _apply(text, tree)
        return Edit(changes=_changes(tree))
    except Rejected as error:
        return error.rejection


def _apply(text: str, tree: Tree) -> None:
    if len(text) > EDIT_LIMIT_BYTES:
        raise reject("too_large", f"the edit has {len(text)} characters; {EDIT_LIMIT_BYTES} are the most")
    if edits_blocks.has_blocks(text):
        edits_blocks.apply_blocks(text, tree)
    elif patches_parsing.has_patch(text):
        patches.apply_patch(text, tree)
    elif not edits_blocks.apply_whole_files(text, tree):
        raise reject("malformed", f"there is no edit in the answer: expected {FORMS}")


def _changes(tree: Tree) -> dict[str, str | None]:
    changes = tree.changes()
    if not changes:
        raise reject("unchanged", "the edit leaves every file as it is")
    if len(changes) > MAX_FILES:
        raise reject("too_large", f"the edit changes {len(changes)} files; {MAX_FILES} are the most")
    return changes
