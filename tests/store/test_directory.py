from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from atlas.directory import DataDirectory
from atlas.errors import DataDirectoryBusy, OperatorError
from atlas.store import open_store


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_owner_can_read_the_files(directory: DataDirectory) -> None:
    store = open_store(directory)
    store.keys.mint("laptop")
    assert mode(directory.path) == 0o700
    assert mode(directory.secrets) == 0o700
    assert {mode(directory.secrets / name) for name in ("pepper", "jwt")} == {0o600}
    assert {mode(path) for path in directory.path.glob("atlas.sqlite3*")} == {0o600}
    store.close()


def test_a_second_process_is_refused_with_the_pid_of_the_first(directory: DataDirectory) -> None:
    code = (
        "import sys; from pathlib import Path; from atlas.directory import DataDirectory\n"
        "from atlas.errors import DataDirectoryBusy\n"
        "try: DataDirectory(Path(sys.argv[1])).hold()\n"
        "except DataDirectoryBusy as busy: print(busy)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(directory.path)], capture_output=True, text=True, check=True)
    assert f"pid {os.getpid()}" in run.stdout
    assert str(directory.path) in run.stdout


def test_the_lock_can_be_taken_again_after_release(tmp_path: Path) -> None:
    first, second = (DataDirectory(tmp_path / "data").create() for _ in range(2))
    first.hold()
    with pytest.raises(DataDirectoryBusy):
        second.hold()
    first.release()
    second.hold()
    second.release()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match="--data-dir"):
        DataDirectory(tmp_path / "file" / "data").create()
