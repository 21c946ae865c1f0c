"""A fork server: started by exec with an empty environment, warm with what its boxes need, seeing only what they may see.

    python -I zygote.py CONTROL_FD CONFIGURATION

One message on the control socket is one box: `box NUMBER KEEPER FRESH`, and its descriptors. What goes back, as JSON: `ready` or
`broken` once; `ended` for each box, with how its program ended. `tell NUMBER` asks for `started`: since when a box runs, and its
pid (in the zygote's pid namespace). `kill NUMBER` ends one. When the socket closes the zygote ends, and with it, being pid 1 of
its namespace, everything it has started.
"""

import _socket  # the C half does: what `socket` imports would be 0.2 MB of each box
import array
import contextlib
import gc
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

if __name__ == "__main__":  # run as a file: neither `atlas` nor its packages may be imported for real
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import fresh  # type: ignore[import-not-found]

    del sys.path[0]
    room = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    fresh.stand_in(("atlas", os.path.dirname(room)), ("atlas.sandbox", room))

from atlas.sandbox.inside import box, kernel, landlock, readymade, rehearsal, runners, view

OWN_NAMESPACES = (
    kernel.CLONE_NEWNS
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWCGROUP
)
BOX_NAMESPACES = (
    kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWNET
)
MESSAGE_BYTES = 128  # room for more would be memory to touch for each box
STATUS_BYTES = 1 << 16
DESCRIPTORS_BYTES = _socket.CMSG_LEN(4 * 7)
OOM_SCORE = "500"  # of two processes the kernel may end, a box goes first


class Running(NamedTuple):
    """A box, by its first process."""

    job: int
    pid: int
    has_keeper: bool
    started_s: float


class Zygote:
    """The loop. One thread, no timers: whoever watches time and memory sits at the other end of the socket."""

    end_with = signal.SIGKILL

    def __init__(self, control: _socket.socket, setup: box.Setup) -> None:
        self._control = control
        self._setup = setup
        self._status, self._status_for_boxes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._boxes: dict[int, Running] = {}  # by descriptor of the process
        self._endings: dict[int, dict[str, Any]] = {}
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def serve(self) -> None:
        """Until the other end is gone."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor != self._control.fileno():
                    self._bury(descriptor)
                elif not self._obey():
                    return

    def _obey(self) -> bool:
        message, ancillary, _, _ = self._control.recvmsg(MESSAGE_BYTES, DESCRIPTORS_BYTES)
        if not message:
            return False
        order = message.split()
        job = int(order[1])
        if order[0] == b"box":
            descriptors = array.array("i")
            for _, _, data in ancillary:
                descriptors.frombytes(data)
            self._start(job, descriptors.tolist(), has_keeper=order[2] == b"1", is_fresh=order[3] == b"1")
        elif running := self._find(job):
            if order[0] == b"kill":
                os.kill(running.pid, self.end_with)  # not waited for yet, so the pid is still its own
            else:
                self._control.send(b'{"started":%d,"pid":%d,"at_s":%.6f}' % (job, running.pid, running.started_s))
        return True

    def _start(self, job: int, descriptors: list[int], *, has_keeper: bool, is_fresh: bool) -> None:
        started_s = time.monotonic()
        try:
            pid, pidfd = self._make(job, descriptors, has_keeper=has_keeper, is_fresh=is_fresh)
        except OSError as error:
            self._send({"ended": job, "failure": str(error)})
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._boxes[pidfd] = Running(job, pid, has_keeper, started_s)
        self._poll.register(pidfd, select.POLLIN)

    def _make(self, job: int, descriptors: list[int], *, has_keeper: bool, is_fresh: bool) -> tuple[int, int]:
        """The box's first process, and a descriptor of it. Does not return in that process."""
        pid, pidfd = kernel.clone(BOX_NAMESPACES)
        if pid == 0:
            try:
                keep = box.keep_fresh if is_fresh else box.keep
                enter = keep if has_keeper else box.begin
                enter(self._setup, job, descriptors, self._status_for_boxes)
            except BaseException as error:  # nothing may return into the server's loop
                box.tell_failure(job, self._status_for_boxes, error)
            finally:
                os._exit(box.FAILED_SETUP)
        return pid, pidfd

    def _find(self, job: int) -> Running | None:
        return next((running for running in self._boxes.values() if running.job == job), None)

    def _bury(self, pidfd: int) -> None:
        job, pid, has_keeper, started_s = self._boxes.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status, usage = os.wait4(pid, 0)
        wall_s = time.monotonic() - started_s
        self._clear(job)
        self._hear()
        ending = self._endings.pop(job, {})  # a keeper that told nothing was killed, by us or by the kernel
        if not has_keeper:
            ending.setdefault("status", status)
        spent = (job, wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
        if ending.keys() == {"status"}:  # nearly always; json would be memory to touch
            self._control.send(
                b'{"ended":%d,"wall_s":%.6f,"cpu_s":%.6f,"peak_bytes":%d,"status":%d}' % (*spent, ending["status"])
            )
        else:
            self._send(dict(zip(("ended", "wall_s", "cpu_s", "peak_bytes"), spent, strict=True)) | ending)

    def _clear(self, job: int) -> None:
        """End what a box has left behind: nothing, when its first process is the first of a namespace."""

    def _hear(self) -> None:
        """What came from boxes: a keeper says how its program ended, a program why it could not begin."""
        try:
            text = os.read(self._status, STATUS_BYTES)
        except BlockingIOError:
            return
        for line in text.splitlines():
            ending = json.loads(line)
            self._endings.setdefault(ending.pop("job"), {}).update(ending)

    def _send(self, message: dict[str, Any]) -> None:
        self._control.send(json.dumps(message).encode())


def main() -> None:
    control = _socket.socket(fileno=int(sys.argv[1]))
    configuration = json.loads(sys.argv[2])
    is_root = os.getuid() == 0 and is_mapped(configuration["uid"])
    try:
        kernel.require_known_machine()
        _enter_namespaces(is_root)
        warm = os.fork()  # pid 1 of the new namespace
    except OSError as error:
        tell_broken(control, error)
    if warm:
        control.close()
        os.waitpid(warm, 0)
        os._exit(0)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        setup = _prepare(configuration, is_root)
    except BaseException as error:  # whatever it is, the pool must hear of it
        tell_broken(control, error)
    zygote = Zygote(control, setup)
    with contextlib.suppress(BrokenPipeError):  # nobody wants it any more
        control.send(json.dumps({"ready": {"proc": setup.has_proc, "landlock": setup.landlock_version}}).encode())
        zygote.serve()
    os._exit(0)


def is_mapped(uid: int) -> bool:
    """Whether there is such a uid here: root of a user namespace may be alone in it, and is nobody special outside."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    return any(first <= uid < first + count for first, _, count in ranges)


def _enter_namespaces(is_root: bool) -> None:
    uid, gid = os.getuid(), os.getgid()
    kernel.unshare(OWN_NAMESPACES | (0 if is_root else kernel.CLONE_NEWUSER))
    if not is_root:
        kernel.map_ids(0, uid, gid)


def _prepare(configuration: dict[str, Any], is_root: bool) -> box.Setup:
    """Warm up, then give up what is not needed any more."""
    restore_signals()
    kernel.set_hostname(b"box")
    runners.warm(configuration["profile"])
    path = [entry for entry in sys.path if os.path.isdir(entry)]
    kernel.write_text("/proc/self/oom_score_adj", OOM_SCORE)
    read_only = [*view.interpreter_paths(sys.executable), *configuration["read_only"]]
    shown = [readymade.prepare(), *([_shower(configuration, is_root)] if configuration["project"] else [])]
    has_proc = view.build(read_only, shown)
    if is_root:
        become(configuration["uid"])
    os.environ.clear()
    os.environ.update(view.ENVIRONMENT)
    os.chdir("/")
    setup = box.Setup(
        uid=os.getuid(),
        gid=os.getgid(),
        has_proc=has_proc,
        landlock_version=landlock.version(),
        python=sys.executable,
        path=path,
    )
    rehearsal.rehearse(setup)
    gc.collect()
    gc.freeze()
    return setup


def _shower(configuration: dict[str, Any], is_root: bool) -> Callable[[str], None]:
    """What shows the project in a root that is being made."""
    from atlas.sandbox.inside import project_view  # what it imports would make the boxes of all others dearer

    return project_view.Project(configuration["project"], configuration["uid"] if is_root else None).show


def restore_signals() -> None:
    """As an interpreter starts, whatever the one who started this process had ignored: a full disk is an error, not the end."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def become(uid: int) -> None:
    """Nobody's uid: a limit on processes does not hold for root, whatever its namespace."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # /proc/self is ours again
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # which changing ids has cleared


def tell_broken(control: _socket.socket, error: BaseException) -> NoReturn:
    number = error.errno if isinstance(error, OSError) else None
    with contextlib.suppress(BrokenPipeError):
        control.send(json.dumps({"broken": f"{type(error).__name__}: {error}"[:1000], "errno": number}).encode())
    os._exit(1)


if __name__ == "__main__":
    main()
