"""The host that attacks aim at: secrets, listeners, a process, an interpreter; and how it looks from outside, before and after.

Everything here is as open as a careless host could have it (readable by all, owned by the very user that boxes run as), so that
it is isolation that protects it and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.sandbox.escapes import numbers

OPEN_PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run")
WATCHED = ("/etc/passwd", "/etc/hosts", "/etc/ld.so.preload", "/etc/ld.so.cache", "/etc/crontab", "/etc/environment")
KERNEL_STATE = (
    *(
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/domainname",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/overcommit_memory",
    ),
    *("/proc/swaps", "/proc/modules", "/proc/sys/kernel/modprobe"),
)
OF_OTHER_TESTS = ("atlas-host-", "atlas-user-", "atlas-was-here-")  # that run at the same time
BOX_PORT = 41987  # one that attacks listen on; the host has nothing there


class World:
    """One host for one user. `facts` is what attacks may know; the canary is what they must not find out."""

    def __init__(self, uid: int) -> None:
        self.uid = uid
        self.canary = "CANARY-" + secrets.token_hex(16)
        self.marker = "atlas-was-here-" + secrets.token_hex(4)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> World:
        with contextlib.ExitStack() as stack:
            self.directory = Path(tempfile.mkdtemp(prefix="atlas-host-", dir="/var/tmp"))
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self.directory.chmod(0o755)
            self._make_files(stack)
            self._make_interpreter()
            self._listen(stack)
            self._start_victim(stack)
            self._open = stack.pop_all()
        self._before = self.state()
        self._victim_before = self._victim_state()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _make_files(self, stack: contextlib.ExitStack) -> None:
        self.home = self.directory / "home"
        self.secret_files = [self.home / "secret.txt", self.home / ".ssh" / "id_ed25519"]
        for place in OPEN_PLACES:
            if os.access(place, os.W_OK):
                path = Path(place) / f"{self.marker}-secret.txt"
                self.secret_files.append(path)
                stack.callback(path.unlink)
        for path in self.secret_files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.canary + "\n")
            self._give(path.parent) if path.is_relative_to(self.directory) else None
            self._give(path)
        self.drop = self.directory / "drop"  # anybody may write here
        self.drop.mkdir()
        self.drop.chmod(0o777)
        self._give(self.drop)

    def _give(self, path: Path) -> None:
        if os.getuid() == 0:
            os.chown(path, self.uid, self.uid, follow_symlinks=False)

    def _make_interpreter(self) -> None:
        """A virtual environment of that user's own, whose interpreter is a link in the home directory."""
        (self.home / "bin").mkdir()
        (self.home / "bin" / "python3").symlink_to(sys.executable)
        venv = self.home / "project" / ".venv"
        self.packages = venv / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
        self.packages.mkdir(parents=True)
        (venv / "bin").mkdir()
        self.python = venv / "bin" / "python"
        self.python.symlink_to(self.home / "bin" / "python3")
        (venv / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
        self.shared_file = self.packages / "shared.txt"
        self.shared_file.write_text("all may read this\n")
        for path in (venv, *venv.rglob("*")):
            self._give(path)

    def _listen(self, stack: contextlib.ExitStack) -> None:
        self._streams: dict[str, socket.socket] = {}
        self._datagrams: dict[str, socket.socket] = {}
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with contextlib.suppress(OSError):  # a machine without IPv6
                self._add(stack, family, socket.SOCK_STREAM, (address, 0))
                self._add(stack, family, socket.SOCK_DGRAM, (address, 0))
        self.abstract = "\0" + self.marker
        self.socket_path = self.directory / "pool.sock"
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            self._add(stack, socket.AF_UNIX, kind, f"{self.abstract}-{int(kind)}")
            self._add(stack, socket.AF_UNIX, kind, f"{self.socket_path}{int(kind)}")
        for path in self.directory.glob("pool.sock*"):
            path.chmod(0o777)

    def _add(self, stack: contextlib.ExitStack, family: int, kind: int, address: Any) -> None:
        listener = stack.enter_context(socket.socket(family, kind))
        listener.setblocking(False)
        listener.bind(address)
        name = f"{family}-{kind}-{address}"
        if kind == socket.SOCK_STREAM:
            listener.listen(64)
            self._streams[name] = listener
        else:
            self._datagrams[name] = listener

    def _port(self, listeners: dict[str, socket.socket], family: int) -> int:
        found = [listener for listener in listeners.values() if listener.family == family]
        return int(found[0].getsockname()[1]) if found else 1

    def _start_victim(self, stack: contextlib.ExitStack) -> None:
        """A process of that user with a secret in its arguments and its environment."""
        script = f"echo ready; while :; do sleep 60; done; : {self.canary}"
        user = {"user": self.uid, "group": self.uid, "extra_groups": []} if os.getuid() == 0 else {}
        environment = {"PATH": os.defpath, "SECRET": self.canary}
        self.victim = subprocess.Popen(["/bin/sh", "-c", script], env=environment, stdout=subprocess.PIPE, cwd="/", **user)  # type: ignore[call-overload]
        stack.callback(self._end_victim)
        assert self.victim.stdout is not None
        self.victim.stdout.readline()

    def _end_victim(self) -> None:
        for child in Path(f"/proc/{self.victim.pid}/task/{self.victim.pid}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), 9)
        self.victim.kill()
        self.victim.communicate()

    @property
    def facts(self) -> dict[str, Any]:
        """What attacks are told, so that no attack fails for not knowing where to aim."""
        return {
            "calls": {**numbers.REFUSED, **numbers.OTHERS},
            "refused": sorted(numbers.REFUSED),
            "marker": self.marker,
            "secret_files": [str(path) for path in self.secret_files],
            "home": str(self.home),
            "drop": str(self.drop),
            "packages": str(self.packages),
            "links": sys.executable,
            "shared_file": str(self.shared_file),
            "victim": self.victim.pid,
            "uid": self.uid,
            "tcp": self._port(self._streams, socket.AF_INET),
            "tcp6": self._port(self._streams, socket.AF_INET6),
            "udp": self._port(self._datagrams, socket.AF_INET),
            "udp6": self._port(self._datagrams, socket.AF_INET6),
            "abstract": self.marker,
            "socket_path": str(self.socket_path),
            "box_port": BOX_PORT,
        }

    def damage(self) -> list[str]:
        """What is not as it was; nobody reached in, nothing got out."""
        return [*self._changes(), *self._contacts(), *self._traces()]

    def _changes(self) -> Iterator[str]:
        for name, value in self.state().items():
            if value != self._before[name]:
                yield f"{name} was {self._before[name]!r} and is {value!r}"
        if (victim := self._victim_state()) != self._victim_before:
            yield f"the host's process was {self._victim_before} and is {victim}"

    def _contacts(self) -> Iterator[str]:
        for name, listener in self._streams.items():
            with contextlib.suppress(BlockingIOError):
                listener.accept()[0].close()
                yield f"somebody connected to {name}"
        for name, listener in self._datagrams.items():
            with contextlib.suppress(BlockingIOError):
                yield f"somebody sent {listener.recv(1000)!r} to {name}"

    def _traces(self) -> Iterator[str]:
        """Files and sockets that bear the marker, or belong to the boxes' user, where the host never put any."""
        known = {*self.secret_files, self.directory}
        for place in OPEN_PLACES:
            for path in Path(place).iterdir():
                if path not in known and self._is_trace(path):
                    yield f"{path} was left behind"
        for path in self.directory.rglob("*"):
            if self.marker in path.name:
                yield f"{path} was left behind"
        for line in Path("/proc/net/unix").read_text().splitlines():
            if self.marker in line and not line.endswith((f"{self.marker}-1", f"{self.marker}-2")):
                yield f"a socket is bound: {line}"

    def _is_trace(self, path: Path) -> bool:
        with contextlib.suppress(OSError):
            is_theirs = os.getuid() == 0 and path.lstat().st_uid == self.uid and not path.name.startswith(OF_OTHER_TESTS)
            return is_theirs or self.marker in path.name
        return False

    def state(self) -> dict[str, str]:
        """Whatever attacks would change if they could."""
        return {
            **{path: _digest(Path(path)) for path in WATCHED},
            **{path: _text(Path(path)) for path in KERNEL_STATE},
            "mounts": _text(Path("/proc/self/mountinfo")),
            "secrets": ",".join(map(_digest, self.secret_files)),
            "interpreter": _digest(Path(sys.executable).resolve()),
            "packages": _listing(self.home / "project"),
            "standard library": _listing(Path(os.__file__).parent / "json"),
            "System V objects": _system_v_objects(self.uid),
        }

    def _victim_state(self) -> tuple[str, ...]:
        process = Path("/proc") / str(self.victim.pid)
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        state, nice, started = "runs" if fields[0] in "RSD" else fields[0], fields[16], fields[19]
        return (
            state,
            nice,
            started,
            _text(process / "oom_score_adj"),
            _text(process / "limits"),
            str(os.sched_getaffinity(self.victim.pid)),
        )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        return str(error)


def _digest(path: Path) -> str:
    try:
        return f"{hashlib.sha256(path.read_bytes()).hexdigest()[:16]} {path.stat().st_mode:o} {path.stat().st_uid}"
    except OSError as error:
        return str(error)


def _system_v_objects(uid: int) -> str:
    lines = [line for kind in ("shm", "msg", "sem") for line in _text(Path("/proc/sysvipc") / kind).splitlines()]
    return "; ".join(line for line in lines if str(uid) in line.split())


def _listing(directory: Path) -> str:
    """Every file below, with its content."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return "; ".join(f"{path} {_digest(path)}" for path in files)
