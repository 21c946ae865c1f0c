from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as a user would install it, built without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_holds_settings_migrations_and_models(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        "atlas/atlas.toml",
        "atlas/store/migrations/env.py",
        "atlas/store/migrations/versions/0001_api_keys.py",
        "atlas/store/migrations/versions/0002_shared_use.py",
        "atlas/py.typed",
        "atlas/bench/nano.jsonl.gz",
        "atlas/bench/body.html",
        "atlas/bench/report.html",
    }
    wanted |= {f"atlas/{path.relative_to(ROOT)}" for path in (ROOT / "templates").rglob("*") if path.is_file()}
    wanted |= {f"atlas/store/{path.name}" for path in (ROOT / "atlas/store").glob("*.lua")}
    models = {f"atlas/{path.relative_to(ROOT)}" for path in (ROOT / "models").rglob("*") if path.is_file()}
    assert (wanted | models) - names == set()
    assert not [name for name in names if name.startswith(("tests/", "nano/"))]


def test_an_installed_wheel_finds_its_settings_and_makes_its_ledger(wheel: Path, tmp_path: Path) -> None:
    """From the unpacked wheel alone: not one file of the checkout is used."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import atlas, sys; from atlas.settings import packaged; from atlas.cli import main\n"
        "assert atlas.__file__.startswith(sys.argv[1]), atlas.__file__\n"
        "assert packaged('atlas.toml').is_file() and str(packaged('atlas.toml')).startswith(sys.argv[1])\n"
        "sys.argv = ['atlas', 'keys', 'create', '--name', 'k', '--data-dir', sys.argv[2]]\n"
        "main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site"), str(tmp_path / "data")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "HOME": str(tmp_path)},
    )
    assert run.stdout.startswith("sk-llm-"), run.stderr
