"""Suites by name: the bundled one, public ones from a file given or pulled, and files of one's own."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from atlas.bench.formats import READERS, read_line, read_tasks
from atlas.bench.values import Suite
from atlas.engine import download
from atlas.errors import OperatorError

NANO_FILE = Path(__file__).with_name("nano.jsonl.gz")
GZIP_MAGIC = b"\x1f\x8b"
GITHUB = "https://raw.githubusercontent.com"
HUGGING_FACE = "https://huggingface.co"

Progress = Callable[[int, int | None], None]


class Source(NamedTuple):
    """Where a public suite comes from; `begins` is what its first bytes may be."""

    site: str
    path: str
    begins: tuple[bytes, ...]

    @property
    def file_name(self) -> str:
        return self.path.rpartition("/")[2]


SOURCES = {
    "humaneval": Source(GITHUB, "openai/human-eval/master/data/HumanEval.jsonl.gz", (GZIP_MAGIC,)),
    "mbpp": Source(GITHUB, "google-research/google-research/master/mbpp/mbpp.jsonl", (b"{",)),
    "livecodebench": Source(HUGGING_FACE, "datasets/livecodebench/code_generation_lite/resolve/main/test6.jsonl", (b"{", b" {")),
}
NAMES = ("nano", *SOURCES)


class Shelf:
    """Where pulled suites lie.

    Args:
        folder: of the downloaded files.
        endpoint: HF_ENDPOINT, for what lies on Hugging Face; None for that itself.
        github: likewise for what lies on GitHub.
        is_offline: nothing is downloaded.
    """

    def __init__(self, folder: Path, *, endpoint: str | None = None, github: str | None = None, is_offline: bool = False) -> None:
        self._folder, self._is_offline = folder, is_offline
        self._sites = {HUGGING_FACE: endpoint or HUGGING_FACE, GITHUB: github or GITHUB}

    def find(self, name: str, *, progress: Progress | None = None) -> Path:
        """The file of a public suite, downloaded if it is not here yet.

        Raises:
            OperatorError: it is not here, and nothing may be downloaded.
            DownloadError: it could not be.
        """
        source = SOURCES[name]
        path = self._folder / name / source.file_name
        if path.exists():
            return path
        way_out = f"bring the file yourself: atlas bench {name} --data FILE"
        if self._is_offline:
            raise OperatorError(f"{name} is not on this machine, and engine.offline forbids downloads; {way_out}")
        url = f"{self._sites[source.site].rstrip('/')}/{source.path}"
        download(url, path, progress=progress, begins=source.begins, way_out=way_out)
        return path


def load_suite(name: str, *, data: Path | None = None, shelf: Shelf | None = None, progress: Progress | None = None) -> Suite:
    """A suite by name, or the tasks of a file in our own format.

    Args:
        name: nano, humaneval, mbpp, livecodebench, or a path.
        data: the file of a public suite, instead of a pulled one.
        shelf: where pulled files lie; None: nothing is pulled.
        progress: told how a download goes.

    Raises:
        OperatorError: there is no such suite, or its file is not what it should be.
        DownloadError: it could not be pulled.
    """
    if name == "nano":
        return _read(NANO_FILE, name="nano", kind="")
    if name in SOURCES:
        if data is None and shelf is None:
            raise OperatorError(f"no file was given for {name}")
        path = data or (shelf.find(name, progress=progress) if shelf else Path())
        return _read(path, name=name, kind=name)
    path = Path(name)
    if not path.is_file():
        raise OperatorError(f"'{name}' is neither a suite ({', '.join(NAMES)}) nor a file of tasks")
    return _read(path, name=path.name.partition(".")[0], kind="")


def first_of(suite: Suite, num_tasks: int | None) -> Suite:
    """So many of a suite's tasks, spread evenly over it; all of them if None."""
    if num_tasks is None or num_tasks >= len(suite.tasks):
        return suite
    picked = tuple(suite.tasks[number * len(suite.tasks) // num_tasks] for number in range(num_tasks))
    return Suite(name=suite.name, sha256=suite.sha256, tasks=picked)


def _read(path: Path, *, name: str, kind: str) -> Suite:
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw.startswith(GZIP_MAGIC) else raw
    except (OSError, EOFError, zlib.error) as error:
        raise OperatorError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    tasks = tuple(read_tasks(data, READERS.get(kind, read_line), source=str(path)))
    if not tasks:
        raise OperatorError(f"{path} holds no tasks")
    if twice := _repeated([task.id for task in tasks]):
        raise OperatorError(f"{path}: two tasks have the id '{twice}'")
    return Suite(name=name, sha256=hashlib.sha256(raw).hexdigest(), tasks=tasks)


def _repeated(ids: list[str]) -> str:
    seen: set[str] = set()
    return next((one for one in ids if one in seen or seen.add(one)), "")  # type: ignore[func-returns-value]
