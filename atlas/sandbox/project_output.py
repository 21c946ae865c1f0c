"""What becomes of a verified edit: a branch, or the files themselves. (The diff is in the verdict.)

Git is used by its plumbing, without hooks, filters or the user's configuration, and never touches the working tree or the index.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from atlas.errors import OperatorError
from atlas.sandbox.edits_tree import Rejected, clean_path
from atlas.sandbox.project_files import digest, read_text
from atlas.types import ProjectVerdict

GIT_TIMEOUT_S = 60.0
OPTIONS = ("core.hooksPath=/dev/null", "core.fsmonitor=false", "gc.auto=0", "core.quotePath=false", "core.autocrlf=false")
NEW_FILE_MODE = "100644"
FILE_MODES = (NEW_FILE_MODE, "100755")
AUTHOR = ("ATLAS", "atlas@localhost")


class Entry(NamedTuple):
    """A file in a commit."""

    mode: str
    blob: str


def write_changes(directory: Path, verdict: ProjectVerdict) -> None:
    """Change the files in the working tree as the edit does.

    Raises:
        OperatorError: the edit is not verified, or a file is not any more what the edit was made for; nothing is changed then.
    """
    _ensure_verified(verdict)
    for path, before in verdict.digests.items():
        _ensure_same(directory, path, before)
    for path, text in verdict.changes.items():
        _write(directory / path, text)


def make_branch(directory: Path, name: str, verdict: ProjectVerdict, *, message: str) -> str:
    """Make a branch one commit ahead of HEAD that holds the edit; the commit's id.

    Raises:
        OperatorError: the edit is not verified, the branch exists, the project is in no repository, or a file that the edit
            changes is not as HEAD has it.
    """
    _ensure_verified(verdict)
    git = Git(directory)
    git("check-ref-format", "--branch", name, problem=f"{name!r} is not a name for a branch")
    git("check-ref-format", f"refs/heads/{name}", problem=f"{name!r} is not a name for a branch")  # @{-1} is short for one
    if git.succeeds("show-ref", "--verify", "--quiet", f"refs/heads/{name}"):
        raise OperatorError(f"there is a branch {name!r} already; name another one")
    head = git("rev-parse", "--verify", "HEAD^{commit}", problem=f"{directory} is in no git repository with a commit")
    prefix = git("rev-parse", "--show-prefix")
    tree = _tree(git, directory, prefix, verdict)
    commit = git("commit-tree", tree, "-p", head, "-F", "-", text=message.rstrip() + "\n")
    git("update-ref", f"refs/heads/{name}", commit, "0" * len(commit), problem=f"there is a branch {name!r} already")
    return commit


class Git:
    """Runs git in a project, on an index of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._options = [word for option in (*OPTIONS, *self._safe_directories()) for word in ("-c", option)]
        self._environment = self._make_environment()

    def __call__(self, *arguments: str, text: str = "", problem: str = "", index: str = "") -> str:
        """Its output without the last line feed.

        Raises:
            OperatorError: it failed; the message is `problem`, or what git says.
        """
        done = self._run(arguments, text=text, index=index)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise OperatorError(f"{problem}: {said}" if problem and said else problem or f"git {arguments[0]}: {said}")
        return done.stdout.decode(errors="surrogateescape").removesuffix("\n")

    def succeeds(self, *arguments: str) -> bool:
        return self._run(arguments).returncode == 0

    def entry(self, path: str) -> Entry | None:
        """The file at this path in HEAD."""
        line = self("ls-tree", "-z", "--full-tree", "HEAD", path).removesuffix("\0")
        if not line:
            return None
        mode, kind, blob = line.partition("\t")[0].split(" ")
        if kind != "blob" or mode not in FILE_MODES:
            raise OperatorError(f"{path} is not a file in HEAD; take the diff instead")
        return Entry(mode, blob)

    def blob(self, blob: str) -> str:
        """Text of a file in the repository."""
        return self._run(("cat-file", "blob", blob)).stdout.decode(errors="surrogateescape")

    def _run(self, arguments: Sequence[str], *, text: str = "", index: str = "") -> subprocess.CompletedProcess[bytes]:
        environment = self._environment | ({"GIT_INDEX_FILE": index} if index else {})
        content = text.encode("utf-8", "surrogateescape")
        return _git([*self._options, *arguments], self._directory, environment, content=content)

    def _safe_directories(self) -> list[str]:
        """Repositories of others that the user has said to trust: the one setting of theirs that is needed to read anything."""
        known = _git(["config", "--global", "--get-all", "safe.directory"], self._directory, dict(os.environ))
        return [f"safe.directory={line}" for line in known.stdout.decode(errors="surrogateescape").splitlines()]

    def _make_environment(self) -> dict[str, str]:
        name, email = (self._configured(key) or default for key, default in zip(("user.name", "user.email"), AUTHOR, strict=True))
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": "/nonexistent",
            "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_LITERAL_PATHSPECS": "1",
            "GIT_AUTHOR_NAME": name,
            "GIT_AUTHOR_EMAIL": email,
            "GIT_COMMITTER_NAME": name,
            "GIT_COMMITTER_EMAIL": email,
        }

    def _configured(self, key: str) -> str:
        done = _git(["config", "--get", key], self._directory, dict(os.environ))
        return done.stdout.decode(errors="replace").strip()


def _git(
    arguments: Sequence[str], directory: Path, environment: dict[str, str], *, content: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run it.

    Raises:
        OperatorError: there is no git, or it does not end.
    """
    try:
        return subprocess.run(  # noqa: S603
            ["git", *arguments],  # noqa: S607 - the user's own
            cwd=directory,
            env=environment,
            input=content,
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise OperatorError("there is no git on PATH, which a branch needs; take the diff instead") from None
    except subprocess.TimeoutExpired:
        raise OperatorError(f"git {arguments[-1]} did not end within {GIT_TIMEOUT_S:.0f} s") from None


def _tree(git: Git, directory: Path, prefix: str, verdict: ProjectVerdict) -> str:
    """HEAD's tree with the edit in it."""
    with tempfile.TemporaryDirectory(prefix="atlas-index-") as scratch:
        index = str(Path(scratch) / "index")
        git("read-tree", "HEAD", index=index)
        lines = [_index_line(git, directory, prefix, path, verdict) for path in verdict.changes]
        git("update-index", "-z", "--index-info", text="".join(lines), index=index)
        return git("write-tree", index=index)


def _index_line(git: Git, directory: Path, prefix: str, path: str, verdict: ProjectVerdict) -> str:
    """What makes the file in the index what the edit makes of it."""
    now = _ensure_same(directory, path, verdict.digests[path])
    entry = git.entry(prefix + path)
    stored = None if entry is None else git.blob(entry.blob)
    text = verdict.changes[path]
    if stored != now:  # a checkout may have given the file carriage returns, which the repository does not keep
        if stored is None or now is None or stored != now.replace("\r\n", "\n"):
            raise OperatorError(f"{path} is not as HEAD has it; commit it first, or take the diff")
        text = None if text is None else text.replace("\r\n", "\n")
    mode = entry.mode if entry else NEW_FILE_MODE
    if text is None:
        return f"0 {'0' * len(entry.blob if entry else '')}\t{prefix}{path}\0"
    return f"{mode} {git('hash-object', '-w', '--no-filters', '--stdin', text=text)}\t{prefix}{path}\0"


def _ensure_verified(verdict: ProjectVerdict) -> None:
    if not verdict.passed:
        raise OperatorError(f"the edit is not verified ({verdict.outcome}: {verdict.message}), so it is not taken over")


def _ensure_same(directory: Path, path: str, before: str | None) -> str | None:
    """The file's text, if it is still what the edit was made for.

    Raises:
        OperatorError: it is not.
    """
    try:
        text = read_text(directory, clean_path(path))
    except Rejected as error:
        raise OperatorError(error.rejection.message) from None
    if digest(text) != before:
        raise OperatorError(f"{path} was changed since it was checked; check again")
    return text


def _write(place: Path, text: str | None) -> None:
    """Whole, or not at all; what may be done with the file stays as it is."""
    if text is None:
        place.unlink()
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".atlas-", dir=place.parent)
    scratch = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        scratch.chmod(stat.S_IMODE(place.stat().st_mode) if place.exists() else 0o666 & ~_umask())
        scratch.replace(place)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise OperatorError(f"{place}: {error.strerror}") from None


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
