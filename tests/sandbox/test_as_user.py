"""The helper that other tests stand on when they want to be an ordinary user."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.sandbox.as_user import USER, needs_root, run_as_user


def ask(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return run_as_user([sys.executable, "-c", code], **options)  # type: ignore[arg-type]


@needs_root
def test_the_command_is_nobody_special_with_a_home_of_its_own() -> None:
    done = ask(
        "import os; open(os.path.join(os.environ['HOME'], 'x'), 'w'); print(os.getresuid(), os.getgroups(), sorted(os.environ))"
    )
    assert str((USER, USER, USER)) in done.stdout, done.stderr
    assert "PYTEST_CURRENT_TEST" not in done.stdout


def test_it_reaches_the_interpreter_the_packages_and_the_repository() -> None:
    done = ask("import msgspec, atlas.sandbox, pathlib; print(pathlib.Path('tests/sandbox/as_user.py').exists())")
    assert done.stdout == "True\n", done.stderr


@needs_root
def test_what_lies_beside_them_in_a_closed_directory_is_not_there(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "wanted").mkdir()
    (tmp_path / "wanted" / "file").write_text("seen")
    (tmp_path / "secret").write_text("hidden")
    done = ask(
        f"import os; print(os.listdir({str(tmp_path)!r}), open({str(tmp_path / 'wanted' / 'file')!r}).read())",
        needed=[tmp_path / "wanted"],
    )
    assert done.stdout == "['wanted'] seen\n", done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "wanted"]


def test_a_status_other_than_zero_comes_back() -> None:
    assert ask("raise SystemExit(7)").returncode == 7
