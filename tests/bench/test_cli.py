"""`atlas bench` on a real server with a scripted engine, and a real sandbox."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from atlas.cli.main import cli
from tests.bench.test_formats import LIVE, OURS
from tests.cli.conftest import RunningServer
from tests.engine.file_server import serving

ADD = "```python\ndef add(a, b):\n    return a + b\n```"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("bench") / "data", SCRIPTED_REPLY=ADD)
    server.wait_ready()
    yield server
    server.stop()


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    shown = {"visible": {"code": "assert add(1, 1) == 2"}}
    impossible = {"id": "b", "hidden": {"cases": [{"args": [1, 2], "expected": 4}]}}
    path.write_text("\n".join(json.dumps(row) for row in (OURS | shown, OURS | shown | impossible)), "utf-8")
    return path


def called(home: Path, *arguments: str, **environ: str) -> Result:
    """In this process: what ends before a task is asked needs no interpreter of its own."""
    return CliRunner().invoke(cli, ["bench", *arguments], env={"ATLAS_HOME": str(home), **environ})


def test_a_file_of_tasks_is_measured_reported_listed_and_compared(server: RunningServer, tasks: Path) -> None:
    options = ("-k", "2", "--attempts", "1", "--seeds", "1", "--method", "greedy", "--method", "best-of-2")
    done = server.cli("bench", str(tasks), "--name", "monday", "--json", *options)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["suite"], figures["model"], figures["tasks"]) == ("mine", "scripted", 2)
    for row in figures["methods"].values():
        assert (row["solved"]["value"], row["false_verified"]["num_false"], row["false_verified"]["num_verified"]) == (0.5, 1, 2)
    folder = server.data_dir / "bench/runs/monday"
    assert json.loads((folder / "summary.json").read_text()) == figures
    assert "<title>Bench of scripted on mine</title>" in (folder / "report.html").read_text()
    assert len((folder / "records.jsonl").read_text().splitlines()) == 5
    assert "4/4 best-of-2, seed 1" in done.stderr

    again = server.cli("bench", str(tasks), "--name", "monday", *options)
    assert again.returncode == 0
    assert again.stderr == f"report: {folder / 'report.html'}\n"
    assert again.stdout.splitlines()[0].split()[:2] == ["method", "right"]
    assert len((folder / "records.jsonl").read_text().splitlines()) == 5

    other = server.cli("bench", str(tasks), "--name", "monday", *options, "--limit", "1")
    assert (other.returncode, other.stdout) == (1, "")
    assert "was begun with other settings (num_tasks was 2, is 1)" in other.stderr

    assert "monday  mine, 2 tasks, scripted: 4 records" in server.cli("bench", "list").stdout
    compared = server.cli("bench", "compare", "monday:greedy", "monday:best-of-2")
    assert compared.stdout.startswith("monday:greedy to monday:best-of-2: 50.0 % to 50.0 %, +0.0 points")


def test_a_public_suite_is_pulled_from_a_mirror_and_solved(server: RunningServer, tmp_path: Path) -> None:
    with serving(json.dumps(LIVE).encode() + b"\n") as mirror:
        done = server.cli("bench", "livecodebench", "--method", "greedy", "--name", "live", "--json", HF_ENDPOINT=mirror.url)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)["methods"]["greedy"]
    assert (row["solved"]["value"], row["num_solvings"], row["num_failures_of_ours"]) == (0.0, 1, 0)
    assert (server.data_dir / "bench/data/livecodebench/test6.jsonl").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("humanevil",), "'humanevil' is neither a suite (nano, humaneval, mbpp, livecodebench) nor a file of tasks"),
        (("nano", "--method", "guess"), "no method is called 'guess'; there are greedy, best-of-5, one-repair, ralph"),
        (("nano", "--name", "../x"), "'../x' cannot be the name of a bench"),
        (("compare", "nobody", "nowhere"), "records.jsonl: No such file or directory; `atlas bench list` shows what there is"),
    ],
)
def test_a_users_mistake_is_one_line_with_a_way_out(server: RunningServer, arguments: tuple[str, ...], message: str) -> None:
    done = called(server.data_dir, *arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert message in line


def test_offline_nothing_is_pulled(server: RunningServer) -> None:
    done = called(server.data_dir, "mbpp", ATLAS_ENGINE_OFFLINE="true")
    assert done.exit_code == 1
    assert "engine.offline forbids downloads; bring the file yourself: atlas bench mbpp --data FILE" in done.stderr


def test_without_a_server_it_is_said(tmp_path: Path) -> None:
    done = called(tmp_path / "nobody", "nano")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "no server runs on" in done.stderr
