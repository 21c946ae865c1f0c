"""The first program in a box that another program has made, or nothing but a new process: applies what that could not.

    python -I -S -B shim.py TIER JOB DESCRIPTORS PATH [DIRECTORY READ_ONLY]

DESCRIPTORS, by commas: status, payload, stdin, stdout, stderr, report[, receiving, sending]. PATH is sys.path and READ_ONLY what
the box may read beside the system, both by colons. It stays as the box's keeper; the program is its child.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

if __name__ == "__main__":  # run as a file, see zygote.py
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import fresh  # type: ignore[import-not-found]

    del sys.path[0]
    room = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    fresh.stand_in(("atlas", os.path.dirname(room)), ("atlas.sandbox", room))

from atlas.sandbox.inside import alone, box, bubblewrap, kernel, landlock, leftovers, view

TYPE_CHECKING = False
if TYPE_CHECKING:  # see frames.py
    from typing import NoReturn


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
        words = (self._job, ended, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
        os.write(self._status, b'{"job":%d,"status":%d,"cpu_s":%.6f,"peak_bytes":%d}\n' % words)
        os._exit(0)


def keep_first(keeper: Keeper, path: list[str]) -> NoReturn:
    """As pid 1 of a namespace, which ends with this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the only one a first process would act on
    child = keeper.start(bubblewrap.isolate, path=path)
    pid = ended = 0
    while pid != child:
        pid, ended = os.wait()
    keeper.tell(ended)


class Parent:
    """Ends, without a namespace, whatever the program started. SIGTERM means: now."""

    def __init__(self, *, is_confined: bool) -> None:
        self._pid = os.getpid()
        self._is_confined = is_confined
        self._is_over = False
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGTERM)
        leftovers.adopt_orphans()
        if is_confined:
            leftovers.draw_line()
        signal.signal(signal.SIGTERM, lambda *_: self._end())

    def bury(self, child: int) -> int:
        """Wait until nothing is left; how `child` ended."""
        ended = 0
        while True:
            if self._is_over:  # what was told to end before the program began, too
                self._end()
            try:
                pid, status = os.wait()
            except ChildProcessError:
                return ended
            if pid == child:
                ended, self._is_over = status, True

    def _end(self) -> None:
        self._is_over = True
        if self._is_confined:
            leftovers.kill_all()
        else:
            leftovers.hunt_down(self._pid)


def keep_alone(keeper: Keeper, path: list[str], directory: alone.Directory, *, is_confined: bool) -> NoReturn:
    """Without a namespace: nothing is over before everything has ended and the box's directory is removed."""
    parent = Parent(is_confined=is_confined)
    directory.make()

    def isolate(_: box.Setup, order: dict[str, object], kept: list[int]) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        alone.isolate(order, kept, directory=directory, is_confined=is_confined)

    ended = parent.bury(keeper.start(isolate, path=path))
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
