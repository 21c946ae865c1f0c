from __future__ import annotations

import hashlib
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas.engine.pull import download, remote_size
from atlas.errors import DownloadError
from tests.engine.file_server import FileServer, serving

BODY = b"GGUF" + random.Random(1).randbytes(3_000_000)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(BODY) as server:
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "model.gguf"


def leftovers(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if path != target)


def test_a_file_arrives_whole_with_its_hash(server: FileServer, target: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    done = download(f"{server.url}/o/r/resolve/main/model.gguf", target, progress=lambda have, total: seen.append((have, total)))
    assert target.read_bytes() == BODY
    assert (done.size_bytes, done.sha256, done.is_verified) == (len(BODY), hashlib.sha256(BODY).hexdigest(), True)
    assert seen[-1] == (len(BODY), len(BODY))
    assert leftovers(target) == []


def test_a_server_that_names_no_hash_is_believed_but_not_called_verified(server: FileServer, target: Path) -> None:
    server.announced = ""
    assert not download(f"{server.url}/files/model.gguf", target).is_verified


def test_a_connection_that_breaks_is_resumed_where_it_broke(server: FileServer, target: Path) -> None:
    server.break_after = 1_200_000
    download(f"{server.url}/files/model.gguf", target)
    assert target.read_bytes() == BODY
    starts = [wanted for _, _, wanted, _, _ in server.requests]
    assert starts[0] is None
    assert all(start is not None and start != "bytes=0-" for start in starts[1:])
    assert len(starts) >= 3


def test_an_interrupted_download_goes_on_in_the_next_run(server: FileServer, target: Path) -> None:
    server.break_after = 1_500_000
    code = (
        "import sys, os; from pathlib import Path; from atlas.engine.pull import download\n"
        "download(sys.argv[1], Path(sys.argv[2]), progress=lambda have, total: os._exit(9) if have > 1_000_000 else None)"
    )
    url = f"{server.url}/o/r/resolve/main/model.gguf"
    assert subprocess.run([sys.executable, "-c", code, url, str(target)], check=False).returncode == 9
    have = target.with_name("model.gguf.part").stat().st_size
    assert have >= 1_000_000
    server.break_after = None
    assert download(url, target).is_verified
    assert target.read_bytes() == BODY
    assert server.requests[-1][2] == f"bytes={have}-"
    assert server.requests[-1][3] == '"v1"'


def test_a_part_that_is_already_whole_is_only_checked(server: FileServer, target: Path) -> None:
    url = f"{server.url}/files/model.gguf"
    code = (
        "import sys, os; from pathlib import Path; from atlas.engine.pull import download\n"
        "download(sys.argv[1], Path(sys.argv[2]), progress=lambda have, total: os._exit(9) if have == total else None)"
    )
    server.break_after = None
    assert subprocess.run([sys.executable, "-c", code, url, str(target)], check=False).returncode == 9
    download(url, target)
    assert target.read_bytes() == BODY


def test_another_file_behind_the_same_address_is_not_glued_on(server: FileServer, target: Path) -> None:
    code = (
        "import sys, os; from pathlib import Path; from atlas.engine.pull import download\n"
        "download(sys.argv[1], Path(sys.argv[2]), progress=lambda have, total: os._exit(9))"
    )
    url = f"{server.url}/files/model.gguf"
    subprocess.run([sys.executable, "-c", code, url, str(target)], check=False)
    server.body, server.etag = b"GGUF" + bytes(2_000_000), '"v2"'
    download(url, target)
    assert target.read_bytes() == server.body


def test_a_server_without_ranges_sends_it_all_again(server: FileServer, target: Path) -> None:
    server.break_after = 1_200_000
    server.honours_ranges = False
    with pytest.raises(DownloadError, match="interrupted"):
        download(f"{server.url}/files/model.gguf", target)
    server.break_after = None
    download(f"{server.url}/files/model.gguf", target)
    assert target.read_bytes() == BODY


def test_a_wrong_hash_is_refused_and_nothing_is_kept(server: FileServer, target: Path) -> None:
    server.announced = "0" * 64
    with pytest.raises(DownloadError, match=f"wrong hash.*{hashlib.sha256(BODY).hexdigest()}.*{'0' * 64}"):
        download(f"{server.url}/o/r/resolve/main/model.gguf", target)
    assert not target.exists()
    assert leftovers(target) == []


def test_a_page_instead_of_a_model_is_refused_at_once(server: FileServer, target: Path) -> None:
    server.body = b"<!doctype html>" * 100_000
    with pytest.raises(DownloadError, match="not a GGUF file"):
        download(f"{server.url}/files/model.gguf", target)
    assert leftovers(target) == []


@pytest.mark.parametrize(
    ("status", "expected"), [(404, "no such file"), (401, "HF_TOKEN"), (403, "HF_TOKEN"), (500, "HTTP 500"), (429, "HTTP 429")]
)
def test_a_refusal_is_named(server: FileServer, target: Path, status: int, expected: str) -> None:
    server.status = status
    with pytest.raises(DownloadError, match=expected):
        download(f"{server.url}/files/model.gguf", target)
    with pytest.raises(DownloadError, match=expected):
        remote_size(f"{server.url}/files/model.gguf")
    assert leftovers(target) == []


def test_no_network_is_named(target: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(DownloadError, match=r"cannot reach 127\.0\.0\.1: .*atlas models add"):
        download(f"http://127.0.0.1:{port}/files/model.gguf", target)
    with pytest.raises(DownloadError, match="cannot reach"):
        remote_size("http://no-such-host.invalid/model.gguf")


def test_an_unanswered_connection_is_given_up_within_seconds(target: Path) -> None:
    # A listener whose backlog is full drops further connection requests, as a dead host does.
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        with pytest.raises(DownloadError, match="no connection within 5 s"):
            remote_size(f"http://127.0.0.1:{full.getsockname()[1]}/model.gguf")
        for filler in fillers:
            filler.close()


def test_a_host_that_accepts_and_says_nothing_is_given_up_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DownloadError, match="it does not answer"):
        remote_size(f"http://127.0.0.1:{silent.getsockname()[1]}/model.gguf")


def test_a_file_larger_than_the_disk_is_refused_before_it_is_fetched(server: FileServer, target: Path) -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 10**16

    server.body = Huge(b"GGUF" + bytes(1000))
    with pytest.raises(DownloadError, match=r"no space in .*10000000\.00 GB are missing"):
        download(f"{server.url}/files/model.gguf", target)


def test_a_disk_that_fills_up_is_named_and_what_came_is_kept(server: FileServer, target: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from atlas.engine.pull import download\n"
        "from atlas.errors import DownloadError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, resource.RLIM_INFINITY))\n"
        "try: download(sys.argv[1], Path(sys.argv[2]))\n"
        "except DownloadError as error: print(error)"
    )
    url = f"{server.url}/files/model.gguf"
    run = subprocess.run([sys.executable, "-c", code, url, str(target)], capture_output=True, text=True, check=True)
    assert "no space in" in run.stdout
    assert target.with_name("model.gguf.part").stat().st_size == 1_500_000
    download(url, target)
    assert target.read_bytes() == BODY


def test_the_token_is_sent_and_the_size_is_asked_for(server: FileServer) -> None:
    assert remote_size(f"{server.url}/o/r/resolve/main/model.gguf", token="hf_secret") == len(BODY)
    assert server.requests[0][4] == "Bearer hf_secret"


def test_the_size_is_asked_of_the_first_server_that_names_it(server: FileServer) -> None:
    """The storage behind Hugging Face's redirect is never asked: it may refuse HEAD."""
    assert remote_size(f"{server.url}/o/r/resolve/main/model.gguf") == len(BODY)
    assert [path for _, path, *_ in server.requests] == ["/o/r/resolve/main/model.gguf"]
    assert remote_size(f"{server.url}/files/model.gguf") == len(BODY)


def test_a_storage_hash_of_another_kind_is_not_taken_for_sha256(server: FileServer, target: Path) -> None:
    server.etag = f'"{"ab" * 32}"'
    assert download(f"{server.url}/o/r/resolve/main/model.gguf", target).is_verified
    server.announced = ""
    assert not download(f"{server.url}/o/r/resolve/main/model.gguf", target).is_verified


def test_an_etag_that_is_the_files_own_sha256_is_checked(server: FileServer, target: Path) -> None:
    server.etag = f'"{hashlib.sha256(BODY).hexdigest()}"'
    assert download(f"{server.url}/files/model.gguf", target).is_verified
    server.etag = f'"{"0" * 64}"'
    with pytest.raises(DownloadError, match="wrong hash"):
        download(f"{server.url}/files/model.gguf", target)
