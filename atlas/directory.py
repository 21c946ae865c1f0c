"""The data directory: who may read it, who holds it, where things lie in it."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

from atlas.errors import DataDirectoryBusy, OperatorError


class DataDirectory:
    """A folder of mode 0700 with ledger, secrets, models and the control socket.

    The lock belongs to the open file, so a child that inherits `lock_fd` keeps the directory held until both are gone.

    Attributes:
        lock_fd: file descriptor of the held lock; None while not held.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = path / "atlas.sqlite3"
        self.secrets = path / "secrets"
        self.models = path / "models"
        self.control_socket = path / "atlas.sock"
        self.lock_fd: int | None = None

    def create(self) -> DataDirectory:
        """Make the folders, for the owner only.

        Raises:
            OperatorError: the directory cannot be made or written to.
        """
        try:
            for folder in (self.path, self.secrets, self.models):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            self.secrets.chmod(0o700)
        except OSError as error:
            raise OperatorError(
                f"data directory {self.path}: {error.strerror}; choose another with --data-dir or ATLAS_HOME"
            ) from None
        return self

    def hold(self) -> None:
        """Take the lock, for the life of this process or until `release`.

        Raises:
            DataDirectoryBusy: another process holds it; the message names its pid.
        """
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise DataDirectoryBusy(
                f"data directory {self.path} is held by another ATLAS process (pid {holder}); stop it, or use another --data-dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self.lock_fd = descriptor

    def release(self) -> None:
        """Give the lock back; the file stays, since removing it would race with the next holder."""
        if self.lock_fd is not None:
            os.close(self.lock_fd)
            self.lock_fd = None

    def read_secret(self, name: str) -> bytes | None:
        """Contents of `secrets/NAME`, None if there is none."""
        try:
            return (self.secrets / name).read_bytes()
        except FileNotFoundError:
            return None

    def write_secret(self, name: str, value: bytes) -> None:
        """Write `secrets/NAME`, mode 0600 from its first byte, complete or not at all."""
        partial = self.secrets / f".{name}.{secrets.token_hex(4)}"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(value)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.secrets / name)
