"""Downloading a model file: resumable, checked, and never mistaken for complete.

What has arrived lies in NAME.part, with what it is a part of in NAME.part.json; only a whole and verified file gets its name.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec

from atlas.errors import DownloadError

Progress = Callable[[int, int | None], None]  # (bytes here, bytes in all if known)

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0  # silence on an open connection; chosen
CHUNK_BYTES = 1024 * 1024
SPARE_BYTES = 64 * 1024 * 1024  # left free on the disk; chosen
ATTEMPTS_WITHOUT_PROGRESS = 3
MAX_REDIRECTS = 5
RETRY_DELAY_S = 0.25  # doubled with each fruitless attempt; chosen
MAGIC = b"GGUF"
BRING_IT = "bring the file yourself: atlas models add PATH"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Downloaded(msgspec.Struct, frozen=True, kw_only=True):
    """A file that arrived whole. `is_verified`: the server named its hash, and it agreed."""

    size_bytes: int
    sha256: str
    is_verified: bool


class _Source(msgspec.Struct, frozen=True, kw_only=True):
    """What a .part file is a part of; another ETag is another file."""

    url: str
    etag: str
    total_bytes: int | None = None
    sha256: str | None = None


class _Sink(NamedTuple):
    """What becomes of the bytes: who is told of them, and what the first of them may be."""

    progress: Progress
    begins: tuple[bytes, ...]

    @property
    def refusal(self) -> str:
        return "not a GGUF file" if self.begins == (MAGIC,) else "not the file that was expected"


class _Interrupted(Exception):
    """The transfer broke off; what arrived is kept."""


def remote_size(url: str, *, token: str | None = None) -> int | None:
    """Size in bytes the server names for `url`, None if it names none.

    Raises:
        DownloadError: it cannot be reached, or has no such file.
    """
    try:
        with _client(token) as client:
            return _ask_size(client, url)
    except httpx.RequestError as error:
        raise _unreachable(url, error) from None


def download(
    url: str,
    target: Path,
    *,
    token: str | None = None,
    progress: Progress | None = None,
    begins: tuple[bytes, ...] = (MAGIC,),
    way_out: str = BRING_IT,
) -> Downloaded:
    """Fetch `url` to `target`, going on from an earlier part if the server still has the same file.

    Args:
        url: of the file itself.
        target: where it lies when it is whole.
        token: sent as a bearer token.
        progress: told how far it is.
        begins: what the first bytes may be; anything else is not the file, but a page about it.
        way_out: what to do where the site cannot be reached.

    Raises:
        DownloadError: not reachable, refused, not found, interrupted, wrong hash, not such a file, or no room; the message says
            which, and what is kept.
    """
    part = target.with_name(target.name + ".part")
    with _hold(part), _client(token) as client:
        failures = 0
        while True:
            before = part.stat().st_size
            try:
                source = _transfer(client, url, part, _Sink(progress or _silent, begins))
                break
            except (_Interrupted, httpx.RequestError) as error:
                failures = 0 if part.stat().st_size > before else failures + 1
                if failures == ATTEMPTS_WITHOUT_PROGRESS or isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                    raise _broken_off(url, part, error, way_out) from None
                time.sleep(RETRY_DELAY_S * 2**failures)
        done = _verify(part, source)
        part.replace(target)
        _notes(part).unlink(missing_ok=True)
    return done


def _transfer(client: httpx.Client, url: str, part: Path, sink: _Sink) -> _Source:
    """One request: append what is missing. Returns when the server has nothing more to send."""
    have_bytes = part.stat().st_size
    known = _read_notes(part)
    if known is None or known.url != url or not known.etag:
        have_bytes = 0
    headers = {"range": f"bytes={have_bytes}-", "if-range": known.etag} if known and have_bytes else {}
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and known and known.total_bytes == have_bytes:
            return known
        _check_status(response, url)
        start = _start(response)
        if start != have_bytes:
            have_bytes = 0
            if start:
                raise DownloadError(f"{url}: the server sent another range than the one asked for; delete {part} and try again")
        source = _source(response, url)
        _notes(part).write_bytes(msgspec.json.encode(source))
        _check_space(part, have_bytes, source.total_bytes)
        with part.open("r+b", buffering=0) as file:  # unbuffered: a full disk is met here and not in close()
            file.truncate(have_bytes)
            file.seek(have_bytes)
            _receive(response, file, source, sink)
    return source


def _receive(response: httpx.Response, file: FileIO, source: _Source, sink: _Sink) -> None:
    """Write the body, checking the first bytes as they come."""
    for chunk in response.iter_bytes(CHUNK_BYTES):
        if file.tell() == 0 and not chunk.startswith(sink.begins):
            file.truncate(0)
            raise DownloadError(f"{source.url}: {sink.refusal} (it begins with {chunk[:16]!r}); is this the file's own address?")
        _write(file, chunk)
        sink.progress(file.tell(), source.total_bytes)
    os.fsync(file.fileno())
    if source.total_bytes is not None and file.tell() < source.total_bytes:
        raise _Interrupted(f"{file.tell()} of {source.total_bytes} bytes")


def _write(file: FileIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise _no_room(error, Path(os.fsdecode(file.name)), file.tell()) from None


def _verify(part: Path, source: _Source) -> Downloaded:
    size_bytes = part.stat().st_size
    if source.total_bytes is not None and size_bytes != source.total_bytes:
        _discard(part)
        raise DownloadError(f"{source.url}: {size_bytes} bytes arrived, {source.total_bytes} were announced; try again")
    with part.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if source.sha256 is not None and sha256 != source.sha256:
        _discard(part)
        raise DownloadError(
            f"{source.url}: wrong hash: sha256 {sha256} arrived, {source.sha256} was announced; it is deleted, try again"
        )
    return Downloaded(size_bytes=size_bytes, sha256=sha256, is_verified=source.sha256 is not None)


def _ask_size(client: httpx.Client, url: str) -> int | None:
    """Hugging Face names the size on its redirect; the storage behind it may refuse HEAD, its addresses being signed for GET."""
    request = client.build_request("HEAD", url, timeout=CONNECT_TIMEOUT_S)
    for _ in range(MAX_REDIRECTS):
        response = client.send(request, follow_redirects=False)
        linked = response.headers.get("x-linked-size", "")
        if linked.isdigit():
            return int(linked)
        if response.next_request is None:
            _check_status(response, url)
            return _total(response)
        request = response.next_request
    raise DownloadError(f"{url}: more than {MAX_REDIRECTS} redirects; is this the file's own address?")


def _client(token: str | None) -> httpx.Client:
    # Compressed bodies have no byte ranges.
    headers = {"accept-encoding": "identity", "user-agent": "atlas"} | ({"authorization": f"Bearer {token}"} if token else {})
    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    return httpx.Client(headers=headers, timeout=timeout, follow_redirects=True)


def _source(response: httpx.Response, url: str) -> _Source:
    etag = response.headers.get("etag", "")
    is_strong = not etag.startswith("W/")  # If-Range with a weak tag is not allowed (RFC 9110, 13.1.5)
    return _Source(url=url, etag=etag if is_strong else "", total_bytes=_total(response), sha256=_announced_sha256(response))


def _announced_sha256(response: httpx.Response) -> str | None:
    """Hugging Face names the sha256 of a large file as X-Linked-ETag on the redirect to its storage, of others as ETag.

    The storage's own ETag is not looked at: it can be another hash of the same length.
    """
    hops = (*response.history, response)
    for value in (*(hop.headers.get("x-linked-etag", "") for hop in hops), hops[0].headers.get("etag", "")):
        plain = str(value).removeprefix("W/").strip('"').lower()
        if _SHA256.fullmatch(plain):
            return plain
    return None


def _total(response: httpx.Response) -> int | None:
    if match := _RANGE.fullmatch(response.headers.get("content-range", "")):
        return int(match[2]) if match[2] != "*" else None
    length = response.headers.get("content-length", "")
    return int(length) if length.isdigit() else None


def _start(response: httpx.Response) -> int:
    if response.status_code != httpx.codes.PARTIAL_CONTENT:
        return 0
    match = _RANGE.fullmatch(response.headers.get("content-range", ""))
    return int(match[1]) if match else -1


def _check_status(response: httpx.Response, url: str) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    if status in (401, 403):
        raise DownloadError(f"{url}: HTTP {status}; the file is not public, set HF_TOKEN to a token that may read it")
    if status in (404, 410):
        raise DownloadError(f"{url}: HTTP {status}, there is no such file; look the name up at its source")
    if status == 416:
        raise DownloadError(f"{url}: HTTP 416, the file there has changed; delete the .part file and try again")
    raise DownloadError(f"{url}: HTTP {status} {response.reason_phrase}; try again later, or set HF_ENDPOINT to a mirror")


def _check_space(part: Path, have_bytes: int, total_bytes: int | None) -> None:
    free_bytes = shutil.disk_usage(part.parent).free
    missing_bytes = (total_bytes or 0) - have_bytes
    if missing_bytes + SPARE_BYTES > free_bytes:
        raise DownloadError(
            f"no space in {part.parent}: {missing_bytes / 1e9:.2f} GB are missing, {free_bytes / 1e9:.2f} GB are free; "
            "make room, or use another --data-dir"
        )


def _no_room(error: OSError, part: Path, have_bytes: int) -> DownloadError:
    if error.errno in _FULL_DISK:
        return DownloadError(
            f"no space in {part.parent} after {have_bytes / 1e9:.2f} GB ({error.strerror}); make room, repeat, and it goes on"
        )
    return DownloadError(f"{part}: {error.strerror}")


def _unreachable(url: str, error: httpx.RequestError, way_out: str = BRING_IT) -> DownloadError:
    what = str(error) or type(error).__name__
    if isinstance(error, httpx.TimeoutException):
        what = (
            f"no connection within {CONNECT_TIMEOUT_S:.0f} s" if isinstance(error, httpx.ConnectTimeout) else "it does not answer"
        )
    return DownloadError(
        f"cannot reach {httpx.URL(url).host}: {what}; check the network, set HF_ENDPOINT to a mirror, or {way_out}"
    )


def _broken_off(url: str, part: Path, error: Exception, way_out: str) -> DownloadError:
    have_bytes = part.stat().st_size
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) and have_bytes == 0:
        return _unreachable(url, error, way_out)
    return DownloadError(
        f"{url}: interrupted ({str(error) or type(error).__name__}); {have_bytes / 1e9:.2f} GB are kept, repeat and it goes on"
    )


@contextmanager
def _hold(part: Path) -> Iterator[None]:
    """One download of a file at a time, on this machine."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(f"{part} is being written by another process; wait for it to end") from None
        try:
            yield
        finally:
            if part.exists() and part.stat().st_size == 0:
                _discard(part)


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_notes(part: Path) -> _Source | None:
    try:
        return msgspec.json.decode(_notes(part).read_bytes(), type=_Source)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)


def _silent(_have_bytes: int, _total_bytes: int | None) -> None:
    return
