"""What becomes of a verified edit: a branch or changed files, and nothing else of the repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from atlas.errors import OperatorError
from atlas.sandbox.project_files import digest
from atlas.sandbox.project_output import make_branch, write_changes
from atlas.types import ProjectVerdict

FILES = {"app/main.py": "x = 1\n", "app/old.py": "gone\n", "run.sh": "#!/bin/sh\n", "é.txt": "a\r\n"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """With a hook that would leave a trace, and configuration of its own."""
    directory = tmp_path / "repository"
    directory.mkdir()
    git(directory, "init", "-q", "-b", "main")
    git(directory, "config", "user.name", "Ada")
    git(directory, "config", "user.email", "ada@example.org")
    write(directory, FILES)
    (directory / "run.sh").chmod(0o755)
    git(directory, "add", "-A")
    git(directory, "commit", "-q", "-m", "first")
    for name in ("reference-transaction", "post-commit", "pre-commit", "post-index-change"):
        hook = directory / ".git" / "hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\nexit 1\n")
        hook.chmod(0o755)
    return directory


def git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "--no-optional-locks", "-c", "core.hooksPath=/dev/null", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.removesuffix("\n")


def write(directory: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(text, newline="")


def verdict(changes: dict[str, str | None], before: dict[str, str] | None = None) -> ProjectVerdict:
    known = FILES if before is None else before
    digests = {path: digest(known.get(path)) for path in changes}
    return ProjectVerdict(outcome="passed", tier="native", changes=changes, digests=digests)


CHANGES: dict[str, str | None] = {
    "app/main.py": "x = 2\n",
    "app/old.py": None,
    "app/new.py": "y = 1\n",
    "run.sh": "#!/bin/bash\n",
}


def state(directory: Path) -> tuple[str, str, bytes, str]:
    return (
        git(directory, "status", "--porcelain", "-uall"),
        git(directory, "rev-parse", "HEAD"),
        (directory / ".git" / "index").read_bytes(),
        git(directory, "branch", "--show-current"),
    )


def test_a_branch_holds_the_edit_and_leaves_tree_index_and_hooks_alone(repository: Path) -> None:
    write(repository, {"untracked.txt": "mine", "é.txt": "b\n"})
    before = state(repository)
    commit = make_branch(repository, "atlas/fix", verdict(CHANGES), message="Mend it\n\nBecause.")
    assert state(repository) == before
    assert not (repository.parent / "hooked").exists()
    assert git(repository, "rev-parse", "atlas/fix", "atlas/fix^") == f"{commit}\n{before[1]}"
    assert (
        git(repository, "diff", "--name-status", "main", "atlas/fix") == "M\tapp/main.py\nA\tapp/new.py\nD\tapp/old.py\nM\trun.sh"
    )
    assert git(repository, "ls-tree", "atlas/fix", "run.sh").startswith("100755 ")
    assert git(repository, "show", "atlas/fix:app/main.py") == "x = 2"
    assert (
        git(repository, "log", "-1", "--format=%an <%ae>|%cn|%B", "atlas/fix")
        == "Ada <ada@example.org>|Ada|Mend it\n\nBecause.\n"
    )


def test_a_project_in_a_part_of_a_repository_changes_that_part(repository: Path) -> None:
    make_branch(repository / "app", "fix", verdict({"main.py": "x = 3\n"}, {"main.py": "x = 1\n"}), message="m")
    assert git(repository, "diff", "--name-status", "main", "fix") == "M\tapp/main.py"


def test_line_ends_of_a_checkout_are_not_taken_for_a_change(repository: Path) -> None:
    write(repository, {"app/main.py": "x = 1\r\n"})
    make_branch(repository, "fix", verdict({"app/main.py": "x = 2\r\n"}, {"app/main.py": "x = 1\r\n"}), message="m")
    assert git(repository, "show", "fix:app/main.py") == "x = 2"


def test_a_branch_that_exists_is_refused_and_stays(repository: Path) -> None:
    git(repository, "branch", "taken")
    with pytest.raises(OperatorError, match="there is a branch 'taken' already"):
        make_branch(repository, "taken", verdict(CHANGES), message="m")
    assert git(repository, "rev-parse", "taken") == git(repository, "rev-parse", "main")


@pytest.mark.parametrize("name", ["", "-x", "a..b", "a b", "refs~1", "HEAD^"])
def test_what_is_no_name_for_a_branch_is_refused(repository: Path, name: str) -> None:
    with pytest.raises(OperatorError, match="not a name for a branch"):
        make_branch(repository, name, verdict(CHANGES), message="m")


def test_a_file_that_is_not_as_head_has_it_is_refused(repository: Path) -> None:
    write(repository, {"app/main.py": "x = 10\n"})
    with pytest.raises(OperatorError, match=r"app/main\.py is not as HEAD has it; commit it first"):
        make_branch(repository, "fix", verdict({"app/main.py": "x = 2\n"}, {"app/main.py": "x = 10\n"}), message="m")
    with pytest.raises(OperatorError, match=r"app/main\.py was changed since it was checked"):
        make_branch(repository, "fix", verdict({"app/main.py": "x = 2\n"}), message="m")
    assert git(repository, "branch", "--list", "fix") == ""


def test_without_a_repository_or_a_commit_there_is_no_branch(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    with pytest.raises(OperatorError, match="in no git repository with a commit"):
        make_branch(tmp_path, "fix", verdict(CHANGES), message="m")
    git(tmp_path, "init", "-q")
    with pytest.raises(OperatorError, match="in no git repository with a commit"):
        make_branch(tmp_path, "fix", verdict(CHANGES), message="m")


def test_files_are_written_as_they_were_and_only_if_none_has_changed(repository: Path) -> None:
    write(repository, {"app/old.py": "not gone\n"})
    with pytest.raises(OperatorError, match=r"app/old\.py was changed since it was checked"):
        write_changes(repository, verdict(CHANGES))
    assert (repository / "app/main.py").read_text() == "x = 1\n"
    write(repository, FILES)
    write_changes(repository, verdict(CHANGES | {"é.txt": "b\r\n"}))
    assert (repository / "app/main.py").read_text() == "x = 2\n"
    assert (repository / "é.txt").read_bytes() == b"b\r\n"
    assert not (repository / "app/old.py").exists()
    assert (repository / "run.sh").stat().st_mode & 0o777 == 0o755
    assert sorted(path.name for path in (repository / "app").iterdir()) == ["main.py", "new.py"]


def test_a_link_that_has_taken_a_files_place_is_not_followed(repository: Path) -> None:
    (repository / "app/main.py").unlink()
    (repository / "app/main.py").symlink_to("old.py")
    with pytest.raises(OperatorError, match="symbolic link"):
        write_changes(repository, verdict({"app/main.py": "x = 2\n"}))


def test_what_is_not_verified_is_not_taken_over(repository: Path) -> None:
    failed = ProjectVerdict(outcome="failed", tier="native", message="still failing: t", changes=CHANGES)
    for take in (lambda: write_changes(repository, failed), lambda: make_branch(repository, "fix", failed, message="m")):
        with pytest.raises(OperatorError, match="not verified \\(failed: still failing: t\\)"):
            take()
