"""The first program in a box that another program has made, or nothing but a new process: applies what that could not.

    python -I -S -B shim.py TIER JOB DESCRIPTORS PATH [DIRECTORY READ_ONLY]

DESCRIPTORS, by commas: status, payload, stdin, stdout, stderr, report[, receiving, sending]. PATH is sys.path and READ_ONLY what
the box may read beside the system, both by colons. It stays as the box's keeper; the program is its child.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import sys
from typing import NoReturn

if __name__ == "__main__":  # run as a file, see zygote.py
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import fresh  # type: ignore[import-not-found]

    del sys.path[0]
    room = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    fresh.stand_in(("atlas", os.path.dirname(room)), ("atlas.sandbox", room))

from atlas.sandbox.inside import alone, box, bubblewrap, kernel, landlock, leftovers, view


class Keeper:
    """Waits for the program and tells how it ended. Runs nothing of the program's."""

    def __init__(self, job: int, status: int, descriptors: list[int]) -> None:
        self._job = job
        self._status = status
        self._descriptors = descriptors

    def start(self, isolated_by: box.Isolate, *, path: list[str]) -> int:
        """Fork the program; its pid."""
        child = kernel.fork()
        if child == 0:
            sys.path[:] = path
            setup = box.Setup(
                uid=os.getuid(),
                gid=os.getgid(),
                has_proc=os.path.exists("/proc/self"),
                landlock_version=landlock.version(),
                python=sys.executable,
                path=path,
            )
            box.begin(setup, self._job, self._descriptors, self._status, isolated_by=isolated_by, is_fresh=True)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        kernel.close_all_but([self._status])
        return child

    def tell(self, ended: int) -> NoReturn:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        word = {
            "job": self._job,
            "status": ended,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "peak_bytes": usage.ru_maxrss * 1024,
        }
        os.write(self._status, json.dumps(word).encode() + b"\n")
        os._exit(0)


def keep_first(keeper: Keeper, path: list[str]) -> NoReturn:
    """As pid 1 of a namespace, which ends with this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the only one a first process would act on
    child = keeper.start(bubblewrap.isolate, path=path)
    pid = ended = 0
    while pid != child:
        pid, ended = os.wait()
    keeper.tell(ended)


def keep_alone(keeper: Keeper, path: list[str], directory: alone.Directory, *, is_confined: bool) -> NoReturn:
    """Without a namespace: whatever the program started is ended, and its directory removed."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGTERM)
    leftovers.adopt_orphans()
    if is_confined:
        leftovers.draw_line()
    end_all = leftovers.kill_all if is_confined else functools.partial(leftovers.hunt_down, os.getpid())
    is_over = False

    def end(*_: object) -> None:
        nonlocal is_over
        is_over = True
        end_all()

    signal.signal(signal.SIGTERM, end)
    directory.make()

    def isolate(_: box.Setup, order: dict[str, object], kept: list[int]) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        alone.isolate(order, kept, directory=directory, is_confined=is_confined)

    child = keeper.start(isolate, path=path)
    ended = 0
    while True:
        if is_over:  # what was told to end before the program began, too
            end_all()
        try:
            pid, status = os.wait()
        except ChildProcessError:
            break
        if pid == child:
            ended, is_over = status, True
    leftovers.remove_tree(directory.path)
    keeper.tell(ended)


def main() -> None:
    tier, job, numbers, path, *rest = sys.argv[1:]
    os.environ.clear()
    os.environ.update(view.ENVIRONMENT)
    status, *descriptors = map(int, numbers.split(","))
    keeper = Keeper(int(job), status, descriptors)
    if tier == "bwrap":
        keep_first(keeper, path.split(":"))
    directory = alone.Directory(rest[0], rest[1].split(":"))
    keep_alone(keeper, path.split(":"), directory, is_confined=tier == "landlock")


if __name__ == "__main__":
    main()
