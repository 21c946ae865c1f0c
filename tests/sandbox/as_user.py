"""Runs a command as an ordinary user from tests that run as root, even if the interpreter lies where only root may go.

    run_as_user(["/bin/id"])                                        a command
    run_tests_as_user("tests/sandbox/test_contract.py")             a test file; fails with its output unless all of it passed
    python -m tests.sandbox.as_user COMMAND...                      by hand

The child has a mount namespace of its own. In it every directory that is closed to others and lies above something it needs
(the interpreter, its packages, this repository) is covered by an empty one, with only what is needed put back at its own path,
read-only. Then it becomes `USER`, with an empty environment but for a home directory that is removed afterwards. Nothing of the
host changes. Where tests run as an ordinary user already, the command is simply run, in the same environment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from atlas.sandbox.inside.reach import open_way
from atlas.sandbox.inside.view import interpreter_paths

# Tests run side by side, and without a user namespace the kernel counts a user's processes together: a fork bomb in one test
# would be felt in another. So each process of the suite has users of its own.
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
USER = 54321 + WORKER  # nobody's, and not the one that boxes of a pool of root's run as
BOXES = 64_421 + WORKER  # for such boxes, where tests count their processes
REPOSITORY = Path(__file__).parents[2]
TIMEOUT_S = 120.0


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")


def run_as_user(
    command: Sequence[str], *, needed: Sequence[Path] = (), timeout_s: float = TIMEOUT_S, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run `command` in the repository's directory as an ordinary user.

    Args:
        command: its first word is an absolute path.
        needed: what it must reach beside the interpreter, its packages and the repository.
        timeout_s: subprocess.TimeoutExpired after it.
        options: of subprocess.run, like `input`; output is text and captured.
    """
    home = tempfile.mkdtemp(prefix="atlas-user-")
    plan = {"home": home, "user": USER, "needed": [str(path) for path in (*_reached_by_python(), REPOSITORY, *needed)]}
    launch = [sys.executable, "-m", "tests.sandbox.as_user", json.dumps(plan), *command]
    try:
        if os.getuid() == 0:
            os.chown(home, USER, USER)
        return subprocess.run(
            launch,
            env=_environment(home),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            cwd=REPOSITORY,
            **options,
        )
    finally:
        shutil.rmtree(home, ignore_errors=True)


def run_tests_as_user(*arguments: str, timeout_s: float = TIMEOUT_S) -> str:
    """Run pytest with these arguments as an ordinary user; its output.

    Raises:
        AssertionError: not every test passed, or there was none.
    """
    plugins = ["no:cacheprovider", "pytest_asyncio.plugin", "pytest_timeout"]  # the others take seconds to load
    options = ["-q", "--no-header", *(word for plugin in plugins for word in ("-p", plugin))]
    done = run_as_user([sys.executable, "-m", "pytest", *options, *arguments], timeout_s=timeout_s)
    assert done.returncode == 0, f"as an ordinary user:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _environment(home: str) -> dict[str, str]:
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": f"{home}/hypothesis",
    }


def _reached_by_python() -> list[str]:
    """Where this interpreter and everything it imports lie."""
    paths = [*interpreter_paths(sys.executable), sys.prefix, sys.base_prefix, *(path for path in sys.path if path)]
    return [path for path in paths if Path(path).exists()]


def launch(plan: dict[str, Any], command: list[str]) -> None:
    """Become an ordinary user who can reach what is needed, and then the command."""
    if os.getuid() == 0:
        os.umask(0o022)
        open_way(plan["needed"])
        os.setgroups([])
        os.setresgid(*[plan["user"]] * 3)
        os.setresuid(*[plan["user"]] * 3)
    os.chdir(REPOSITORY)
    try:
        os.execve(command[0], command, dict(os.environ))
    except OSError as error:
        sys.exit(
            f"{command[0]} cannot be reached by uid {os.getuid()}: {error.strerror}; is something on the way closed to others?"
        )


if __name__ == "__main__":
    if len(sys.argv) < 3 or not sys.argv[1].startswith("{"):
        by_hand = run_as_user(sys.argv[1:], timeout_s=3600)
        sys.stdout.write(by_hand.stdout)
        sys.stderr.write(by_hand.stderr)
        sys.exit(by_hand.returncode)
    launch(json.loads(sys.argv[1]), sys.argv[2:])
