"""A fork server whose boxes are programs: bubblewrap with our shim in it, or the shim alone.

    python -I starter.py CONTROL_FD CONFIGURATION

Speaks as zygote.py does. It becomes who boxes run as once, adopts whatever they leave behind, and is no part of their isolation.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NoReturn

if __name__ == "__main__":  # run as a file, see zygote.py
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import fresh  # type: ignore[import-not-found]

    del sys.path[0]
    room = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    fresh.stand_in(("atlas", os.path.dirname(room)), ("atlas.sandbox", room))

from atlas.sandbox.inside import alone, box, bubblewrap, kernel, landlock, leftovers, program, reach, view, zygote

FIRST_DESCRIPTOR = 10  # of those a box is given, in the order of the shim's DESCRIPTORS
FREE_DESCRIPTORS = 64  # above all that are placed
ERROR_BYTES = 4096
EXEC_FAILED = 126


class Recipe:
    """How a box is made: the command, for a job and its order."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        self.tier: str = configuration["tier"]
        self.has_proc = True
        self.python = sys.executable
        self.path = [entry for entry in sys.path if os.path.isdir(entry)]
        self.read_only = [*view.interpreter_paths(sys.executable), *configuration["read_only"]]
        self._bwrap: str = configuration["bwrap"]
        self._accounts = {path: _file(text.encode()) for path, text in view.ACCOUNTS.items()}
        self._directory = ""

    def prepare(self) -> None:
        """Find out what can be had.

        Raises:
            OSError: this tier cannot be had here; the message says why.
        """
        if self.tier == "bwrap":
            with contextlib.suppress(OSError):
                self._try()
                return
            self.has_proc = False  # a container that covers paths in /proc lets nobody mount another one
            self._try()
            return
        if self.tier == "landlock" and (version := landlock.version()) < alone.MIN_LANDLOCK:
            raise OSError(f"Landlock is of version {version} here, {alone.MIN_LANDLOCK} is needed (Linux 6.12)")
        if not os.access(self.python, os.X_OK):
            raise OSError(f"uid {os.getuid()} cannot run {self.python}; set sandbox.python to an interpreter that it can run")
        self._directory = leftovers.make_directory(tempfile.gettempdir())

    def directory(self, job: int) -> str:
        return os.path.join(self._directory, str(job)) if self._directory else ""

    def clean(self, job: int) -> None:
        if self._directory:
            leftovers.remove_tree(self.directory(job))

    def close(self) -> None:
        if self._directory:
            leftovers.remove_tree(self._directory)

    def command(self, job: int, payload: int, placed: list[int]) -> list[str]:
        """For a box whose descriptors are `placed`."""
        room = view.PROGRAM if self.tier == "bwrap" else os.path.dirname(os.path.realpath(__file__))
        shim = [self.python, "-I", "-S", "-B", os.path.join(room, "shim.py"), self.tier, str(job), ",".join(map(str, placed))]
        shim.append(":".join(self.path))
        if self.tier != "bwrap":
            return [*shim, self.directory(job), ":".join(self.read_only)]
        order = program.read_order(payload)
        return [*self._box(order["limits"], has_tests=bool(order["tests"])), *shim]

    def _box(self, limits: dict[str, Any], *, has_tests: bool) -> list[str]:
        accounts = {path: _reopen(descriptor) for path, descriptor in self._accounts.items()}
        return [
            self._bwrap,
            *bubblewrap.options(self.read_only, accounts, limits, has_proc=self.has_proc, has_tests=has_tests),
            "--",
        ]

    def _try(self) -> None:
        """Start the interpreter in a box and have it end."""
        errors = _file(b"")
        pid = os.fork()
        if pid == 0:
            become(lambda: [*self._box({"disk_bytes": 1 << 20}, has_tests=False), self.python, "-I", "-S", "-c", "pass"], errors)
        exit_code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        text = take(errors)
        if exit_code:
            raise OSError(text or f"bwrap ended with {exit_code}")


class Starter(zygote.Zygote):
    """One child per box. What is said on its descriptor 2 is ours or bubblewrap's: the program is given the box's own."""

    def __init__(self, control: socket.socket, setup: box.Setup, recipe: Recipe) -> None:
        super().__init__(control, setup)
        self._recipe = recipe
        self._errors: dict[int, int] = {}
        self.end_with = signal.SIGKILL if recipe.tier == "bwrap" else signal.SIGTERM

    def _make(self, job: int, descriptors: list[int], *, has_keeper: bool, is_fresh: bool) -> tuple[int, int]:
        errors = self._errors[job] = _file(b"")
        pid = os.fork()
        if pid == 0:
            become(lambda: self._command(job, descriptors), errors)
        return pid, os.pidfd_open(pid)

    def _command(self, job: int, descriptors: list[int]) -> list[str]:
        placed = _place([self._status_for_boxes, *descriptors])
        return self._recipe.command(job, placed[1], placed)

    def _clear(self, job: int) -> None:
        """The keeper or bubblewrap is gone; what is left of the box goes now. A box without a last word died of its maker."""
        leftovers.end_children({running.pid for running in self._boxes.values()})
        self._recipe.clean(job)
        self._hear()
        text = take(self._errors.pop(job))
        if text and job not in self._endings:
            self._endings[job] = {"failure": text.splitlines()[-1][:300]}

    def close(self) -> None:
        """End every box."""
        for running in self._boxes.values():
            os.kill(running.pid, self.end_with)
            os.waitpid(running.pid, 0)
        leftovers.end_children(set())
        self._recipe.close()


def become(command: Callable[[], list[str]], errors: int) -> NoReturn:
    """Replace this process by a program; what it, or the attempt, complains of goes to `errors`."""
    try:
        os.dup2(errors, 2)
        words = command()
        os.execve(words[0], words, view.ENVIRONMENT)
    except BaseException as error:  # nothing may return into the server's loop
        os.write(2, str(error).encode(errors="replace"))
    os._exit(EXEC_FAILED)


def take(errors: int) -> str:
    text = os.pread(errors, ERROR_BYTES, 0).decode(errors="replace").strip()
    os.close(errors)
    return text


def _file(content: bytes) -> int:
    descriptor = os.memfd_create("starter", os.MFD_CLOEXEC)
    os.write(descriptor, content)
    return descriptor


def _reopen(descriptor: int) -> int:
    """At its start, and with a position of its own; inherited by the program that is started next."""
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    os.set_inheritable(again, True)
    return again


def _place(descriptors: list[int]) -> list[int]:
    """Move them to where nothing else is, and let the next program have them."""
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FREE_DESCRIPTORS) for descriptor in descriptors]
    return [os.dup2(descriptor, FIRST_DESCRIPTOR + index) for index, descriptor in enumerate(high)]


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    configuration = json.loads(sys.argv[2])
    try:
        if configuration["tier"] != "none":
            kernel.require_known_machine()
        zygote.restore_signals()
        leftovers.adopt_orphans()
        with contextlib.suppress(OSError):
            kernel.write_text("/proc/self/oom_score_adj", zygote.OOM_SCORE)
        recipe = Recipe(configuration)
        if os.getuid() == 0 and zygote.is_mapped(configuration["uid"]):
            _become(configuration["uid"], recipe)
        recipe.prepare()
    except BaseException as error:  # whatever it is, the pool must hear of it
        zygote.tell_broken(control, error)
    serve(control, recipe)


def serve(control: socket.socket, recipe: Recipe) -> NoReturn:
    version = landlock.version()
    setup = box.Setup(
        uid=os.getuid(),
        gid=os.getgid(),
        has_proc=recipe.has_proc,
        landlock_version=version,
        python=recipe.python,
        path=recipe.path,
    )
    starter = Starter(control, setup, recipe)
    control.send(json.dumps({"ready": {"proc": recipe.has_proc, "landlock": version}}).encode())
    starter.serve()
    starter.close()
    os._exit(0)


def _become(uid: int, recipe: Recipe) -> None:
    os.umask(0o022)
    with contextlib.suppress(OSError):  # without the right to mount; the trial tells whether that matters
        reach.open_way([*recipe.read_only, os.path.dirname(os.path.realpath(__file__))])
    zygote.become(uid)
    os.chdir("/")


if __name__ == "__main__":
    main()
