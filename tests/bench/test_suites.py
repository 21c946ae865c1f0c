from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from atlas.bench import Shelf, first_of, load_suite
from atlas.bench.suites import NANO_FILE
from atlas.errors import DownloadError, OperatorError
from nano.benchmark import load_benchmark
from nano.suite import suite_bytes
from tests.bench.test_formats import HUMANEVAL, LIVE, OURS
from tests.engine.file_server import serving

BODY = gzip.compress(
    b"".join(json.dumps(HUMANEVAL | {"task_id": f"HumanEval/{n}"}).encode() + b"\n" for n in range(3000)), mtime=0
)


def test_the_bundled_suite_is_what_its_generator_makes() -> None:
    assert gzip.decompress(NANO_FILE.read_bytes()) == gzip.decompress(suite_bytes())


def test_the_bundled_suite_is_the_frozen_benchmark_with_more_tests() -> None:
    suite, tasks = load_suite("nano"), load_benchmark()
    assert [(one.task, one.entry_point, one.group) for one in suite.tasks] == [
        (task.prompt, task.entry_point, f"depth {task.depth}") for task in tasks
    ]
    for one in suite.tasks:
        shown = {line.partition(" == ")[0] for line in one.visible.code.splitlines()}
        hidden, stronger = ({case.args for case in tests.cases} for tests in (one.judge.hidden, one.judge.stronger))
        assert (len(shown), len(hidden), len(stronger)) == (3, 12, 40)
        assert not hidden & stronger
        called = {f"assert {one.entry_point}{args.removesuffix(',)')})" for args in hidden | stronger}
        assert not shown & called


def test_some_tasks_are_spread_over_the_whole_suite() -> None:
    suite = load_suite("nano")
    assert [one.group for one in first_of(suite, 6).tasks] == [f"depth {depth}" for depth in (2, 2, 3, 3, 4, 4)]
    assert first_of(suite, 500) == first_of(suite, None) == suite


def test_a_public_suite_is_pulled_once_and_resumed_where_it_broke(tmp_path: Path) -> None:
    row = {"prompt": "Add one. " * 200, "test_list": ["assert add(1) == 2"]}
    body = b"".join(json.dumps(row | {"task_id": number}).encode() + b"\n" for number in range(1000))
    with serving(body) as server:
        server.break_after = 1_200_000
        shelf = Shelf(tmp_path, github=server.url)
        suite = load_suite("mbpp", shelf=shelf)
        assert len(suite.tasks) == 1000
        assert {path for _, path, *_ in server.requests} == {"/google-research/google-research/master/mbpp/mbpp.jsonl"}
        assert [wanted for _, _, wanted, *_ in server.requests] == [None, "bytes=1048576-"]
        assert load_suite("mbpp", shelf=shelf) == suite
        assert len(server.requests) == 2


def test_what_the_server_announces_is_checked(tmp_path: Path) -> None:
    line = json.dumps(LIVE).encode() + b"\n"
    with serving(line) as server:
        server.announced = "0" * 64
        with pytest.raises(DownloadError, match="wrong hash"):
            load_suite("livecodebench", shelf=Shelf(tmp_path, endpoint=server.url))
        server.announced = ""
        assert len(load_suite("livecodebench", shelf=Shelf(tmp_path, endpoint=server.url)).tasks) == 1


def test_a_page_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with serving(b"<!doctype html>sign in") as server, pytest.raises(DownloadError, match="not the file that was expected"):
        load_suite("mbpp", shelf=Shelf(tmp_path, github=server.url))
    assert not list(tmp_path.rglob("mbpp.jsonl"))


def test_offline_a_suite_that_is_not_here_is_refused_with_a_way_out(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, is_offline=True)
    with pytest.raises(
        OperatorError, match=r"engine\.offline forbids downloads; bring the file yourself: atlas bench mbpp --data FILE"
    ):
        load_suite("mbpp", shelf=shelf)
    given = tmp_path / "mine.jsonl.gz"
    given.write_bytes(BODY)
    assert len(load_suite("humaneval", data=given, shelf=shelf).tasks) == 3000


def test_an_unreachable_site_is_said_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="bring the file yourself: atlas bench humaneval --data FILE"):
        load_suite("humaneval", shelf=Shelf(tmp_path, github="http://127.0.0.1:9"))


def test_a_file_of_ones_own_is_a_suite(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(OURS) + "\n\n" + json.dumps(OURS | {"id": "b"}) + "\n", "utf-8")
    suite = load_suite(str(path))
    assert (suite.name, [task.id for task in suite.tasks]) == ("mine", ["a", "b"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(OURS) + "\n" + json.dumps(OURS), "two tasks have the id 'a'"),
        ("\n", "holds no tasks"),
        ("[1", "is no JSON"),
        ("\x1f\x8b torn", "mine"),
    ],
)
def test_a_file_that_is_no_suite_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(OperatorError, match=message):
        load_suite(str(path))


def test_a_name_that_is_neither_is_refused_with_the_names() -> None:
    with pytest.raises(OperatorError, match=r"neither a suite \(nano, humaneval, mbpp, livecodebench\) nor a file"):
        load_suite("humanevil")
