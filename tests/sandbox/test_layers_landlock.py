"""Landlock as each version of the kernel knows it, and as this one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atlas.sandbox.inside import landlock, leftovers
from atlas.sandbox.inside.alone import MIN_LANDLOCK
from tests.sandbox.as_user import needs_root, run_tests_as_user

SIZES = {1: 8, 2: 8, 3: 8, 4: 16, 5: 16, 6: 24, 7: 24, 8: 24, 11: 24}  # of struct landlock_ruleset_attr
NUM_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16, 6: 16, 7: 16}  # a kernel refuses those it does not know


@pytest.mark.parametrize(("version", "size"), SIZES.items())
def test_what_a_ruleset_is_made_from_is_as_long_as_the_kernel_knows_it(version: int, size: int) -> None:
    assert len(landlock.attributes(version, rights=1, network=3)) == size


@pytest.mark.parametrize(("version", "num_rights"), NUM_RIGHTS.items())
def test_all_rights_that_a_kernel_knows_are_asked_for_and_no_other(version: int, num_rights: int) -> None:
    assert landlock.all_rights(version) == (1 << num_rights) - 1


needs_landlock = pytest.mark.skipif(landlock.version() < 1, reason="this kernel has no Landlock")
needs_scopes = pytest.mark.skipif(landlock.version() < MIN_LANDLOCK, reason="this kernel's Landlock has no scopes")


def confined(code: str, directory: Path) -> str:
    """What a program prints that has confined itself to `directory`; of no harm without that."""
    lines = f"""
import os, sys
from atlas.sandbox.inside import kernel, landlock, leftovers
place = {str(directory)!r}
def attempt(action):
    try: action()
    except OSError as error: return type(error).__name__
    return 'done'
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
{code}
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_landlock
def test_only_what_was_named_can_be_read_and_written(tmp_path: Path) -> None:
    for name in ("readable", "writable", "hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "single").write_text("single")
    seen = confined(
        """
landlock.restrict([place + '/readable', place + '/single'], [place + '/writable'], [])
for name in ('readable/file', 'single', 'writable/file', 'hidden/file'):
    print(name, attempt(lambda: open(place + '/' + name)), attempt(lambda: open(place + '/' + name, 'a')))
""",
        tmp_path,
    )
    assert seen.splitlines() == [
        "readable/file done PermissionError",
        "single done PermissionError",
        "writable/file done done",
        "hidden/file PermissionError PermissionError",
    ]


@needs_scopes
def test_behind_the_line_only_children_can_be_signalled(tmp_path: Path) -> None:
    seen = confined(
        """
import signal
leftovers.draw_line()
child = os.fork()
if child == 0:
    signal.pause()
print(attempt(lambda: os.kill(os.getppid(), 0)))
os.kill(child, signal.SIGTERM)
print(os.WTERMSIG(os.waitpid(child, 0)[1]))
""",
        tmp_path,
    )
    assert seen.splitlines() == ["PermissionError", "15"]


@needs_scopes
def test_everything_beyond_the_line_is_ended_at_once_and_nothing_else(tmp_path: Path) -> None:
    bystander = subprocess.Popen(["/bin/sleep", "60"])
    try:
        seen = confined(
            """
leftovers.adopt_orphans()
leftovers.draw_line()
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        os.fork()
        sys.stdout.close()
        while True: os.getpid()
leftovers.kill_all()
ended = 0
try:
    while os.wait(): ended += 1
except ChildProcessError: pass
print(ended >= 3, leftovers.children(os.getpid()))
""",
            tmp_path,
        )
        assert seen == "True []\n"
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_tree_of_any_depth_and_any_modes_is_removed(tmp_path: Path) -> None:
    top = tmp_path / "box"
    top.mkdir()
    (outside := tmp_path / "outside").write_text("stays")
    descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for number in range(1000):  # its path is longer than a path may be
        os.mkdir("deeper", dir_fd=descriptor)
        os.symlink(outside, "link", dir_fd=descriptor)
        if number % 2:
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o000, dir_fd=descriptor))
        below = os.open("deeper", os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
        os.fchmod(descriptor, 0o000 if number else 0o700)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    leftovers.remove_tree(str(top))
    assert not top.exists()
    assert outside.read_text() == "stays"


@needs_root
def test_all_of_this_holds_for_an_ordinary_user() -> None:
    run_tests_as_user(__file__)


def test_a_directory_that_is_gone_already_is_no_error(tmp_path: Path) -> None:
    leftovers.remove_tree(str(tmp_path / "never"))
