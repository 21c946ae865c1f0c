"""One box, from the inside of its own namespaces to the first line of untrusted code.

The zygote clones a *keeper*, pid 1 of the box, which forks the *program* and reaps; where nothing is to be reaped, it clones the
program at once. The program builds the rest of the isolation around itself before its first untrusted line. The keeper's last
word (how the program ended) only ever makes a result worse.
"""

from __future__ import annotations

import math
import os
import resource
import signal
from _json import encode_basestring_ascii  # json itself would be imported in every box that is a program of its own

from atlas.sandbox.inside import frames, fresh, kernel, landlock, program, runners, seccomp, view

TYPE_CHECKING = False
if TYPE_CHECKING:  # see frames.py
    from collections.abc import Callable
    from typing import Any, NoReturn

    Isolate = Callable[["Setup", dict[str, Any], list[int]], None]

NICENESS = 10
STACK_BYTES = 64 << 20
ADDRESS_SPACE_FACTOR = 4  # of memory_bytes: what is mapped is not what is used
MIN_ADDRESS_SPACE = 2 << 30
OPEN_FILES = 256
PENDING_SIGNALS = 256
OWN_SETTINGS = {  # of the box's own namespaces
    "/proc/sys/user/max_user_namespaces": "0",  # once more: seccomp refuses new ones
    "/proc/sys/net/ipv4/tcp_rmem": "4096 65536 131072",  # buffers of connections are memory of no process
    "/proc/sys/net/ipv4/tcp_wmem": "4096 16384 65536",
}
FAILED_SETUP = 97  # exit status of a keeper whose layers could not be had


class Setup:
    """What a zygote found out once, and all its boxes share."""

    def __init__(self, *, uid: int, gid: int, has_proc: bool, landlock_version: int, python: str, path: list[str]) -> None:
        self.uid = uid  # of the zygote: a new user namespace knows nobody yet
        self.gid = gid
        self.has_proc = has_proc
        self.landlock_version = landlock_version
        self.python = python
        self.path = path


def keep(setup: Setup, job: int, descriptors: list[int], status: int) -> NoReturn:
    """Pid 1 of a box with a keeper: forks the program and reaps. Never returns.

    The program builds the isolation itself, before its first untrusted line, so that the pages of memory that this takes are
    copied once and not twice. What is left here runs nothing but this function, which touches as few pages as it can; no process
    of the box may look into it.

    Args:
        setup: of the zygote.
        job: number that the zygote knows this box by.
        descriptors: payload, stdin, stdout, stderr, report[, receiving, sending].
        status: where to tell how the program ended.
    """
    child = kernel.fork()
    if child == 0:
        begin(setup, job, descriptors, status)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the only one a first process would act on
    _reap(child, job, status)


def keep_fresh(setup: Setup, job: int, descriptors: list[int], status: int) -> NoReturn:
    """Pid 1 of a box whose program is a fresh interpreter. Never returns.

    It builds the isolation around itself before it starts the program, which inherits every layer: a fork would copy the memory
    of this process only to be given up, and posix_spawn lends it.
    """
    try:
        kernel.after_fork()
        payload, report, *peer = _take_streams(descriptors)
        isolate(setup, program.read_order(payload), [0, 1, 2, payload, report, *peer, status])
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # of this process; executing gives the program a memory of its own
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        path, arguments = _fresh(setup, payload, report, peer)
        child = os.posix_spawn(path, arguments, view.ENVIRONMENT, setsid=True, setsigdef=[signal.SIGINT])
    except BaseException as error:  # still before the first line of untrusted code
        tell_failure(job, status, error)
        os._exit(FAILED_SETUP)
    _reap(child, job, status)


def _reap(child: int, job: int, status: int) -> NoReturn:
    """Whatever ends in this box; when the program has, tell how, and end all the rest."""
    kernel.close_range(0, status - 1)
    kernel.close_range(status + 1, kernel.LAST_DESCRIPTOR)
    pid = ended = 0
    while pid != child:
        pid, ended = os.wait()
    os.write(status, b'{"job":%d,"status":%d}\n' % (job, ended))
    os._exit(0)


def isolate(setup: Setup, order: dict[str, Any], kept: list[int]) -> None:
    """Every layer that is not made by clone itself. The order matters: each step needs a right that the next gives up."""
    kernel.close_all_but(kept)
    limits = order["limits"]
    os.setsid()  # a share of the processors of its own, so that what is in it, however much, takes no other box its time
    kernel.map_ids(view.BOX_ID, setup.uid, setup.gid)
    apply_own_settings()
    view.mount_own(limits["disk_bytes"], has_proc=setup.has_proc, has_tests=bool(order["tests"]))
    writable = list(view.WRITABLE)
    if order["project"]:
        from atlas.sandbox.inside import project_view  # a zygote has it; boxes of the other tiers have no projects

        project_view.mount(order["project"], limits["disk_bytes"])
        writable += project_view.writable(order["project"])
    kernel.raise_loopback()
    os.umask(0o077)
    os.nice(NICENESS)
    os.chdir(view.HOME)
    view.put_files(view.HOME, order["files"])
    if order["tests"]:
        view.put_files(view.TESTS, order["tests"])
        view.close_tests()
    kernel.drop_capabilities()
    if setup.landlock_version:
        landlock.restrict(["/"], writable, list(view.DEVICES))
    limit(limits)
    seccomp.OURS.install()


def apply_own_settings() -> None:
    for path, value in OWN_SETTINGS.items():
        try:  # noqa: SIM105 - a context manager would be three more objects in each box
            kernel.write_text(path, value)
        except OSError:  # an old kernel, no /proc/sys, or not the right to
            pass


def limit(limits: dict[str, Any], *, other_processes: int = 0) -> None:
    """Limits of each process. Memory of all together is watched from outside.

    `other_processes` are those of the same user that the kernel will count too, where there is no user namespace.
    """
    space = max(limits["memory_bytes"] * ADDRESS_SPACE_FACTOR, MIN_ADDRESS_SPACE)
    for name, value in (
        (resource.RLIMIT_AS, space),
        (resource.RLIMIT_NPROC, limits["processes"] + 1 + other_processes),  # the keeper counts
        (resource.RLIMIT_FSIZE, limits["file_size_bytes"]),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_STACK, STACK_BYTES),
        (resource.RLIMIT_SIGPENDING, PENDING_SIGNALS),
        (resource.RLIMIT_CPU, max(1, math.ceil(limits["cpu_s"]))),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_RTPRIO, 0),
    ):
        hard = resource.getrlimit(name)[1]
        value = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
        grace = 1 if name == resource.RLIMIT_CPU else 0  # SIGXCPU first, which says what it is; then SIGKILL
        resource.setrlimit(name, (value, value + grace))


def begin(
    setup: Setup,
    job: int,
    descriptors: list[int],
    status: int,
    *,
    isolated_by: Isolate = isolate,
    is_fresh: bool = False,
) -> NoReturn:
    """The main process of the program: as a fresh process would find itself. Never returns.

    What builds the layers around it is `isolated_by`; `is_fresh` tells that this is a fresh interpreter already.
    """
    try:
        kernel.after_fork()
        payload, report, *peer = _take_streams(descriptors)
        order = program.read_order(payload)
        isolated_by(setup, order, [0, 1, 2, payload, report, *peer, status])
        if order["fresh"] and not is_fresh:
            os.execve(*_fresh(setup, payload, report, peer), view.ENVIRONMENT)
        run = runners.find(order["runner"])
    except BaseException as error:  # still before the first line of untrusted code
        tell_failure(job, status, error)
        os._exit(FAILED_SETUP)
    os.close(payload)
    os.close(status)
    if order["fresh"]:
        frames.write_body(report, fresh.BEGUN)
    program.perform(run, order["payload"], report, peer)


def tell_failure(job: int, status: int, error: BaseException) -> None:
    """What kept a box from being made."""
    failure = encode_basestring_ascii(f"{type(error).__name__}: {error}"[:300])
    os.write(status, b'{"job":%d,"failure":%s}\n' % (job, failure.encode()))  # shorter than PIPE_BUF: whole or not at all


def _take_streams(descriptors: list[int]) -> list[int]:
    """Make the program's own what it reads and writes; the other descriptors: payload, report[, receiving, sending]."""
    payload, *streams = descriptors[:4]
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    return [payload, *descriptors[4:]]


def _fresh(setup: Setup, payload: int, report: int, peer: list[int]) -> tuple[str, list[str]]:
    """The program and its arguments that perform the same order in a new interpreter; no site, because its paths are known."""
    descriptors = [payload, report, *peer]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    arguments = [",".join(map(str, descriptors)), ":".join(setup.path)]
    return setup.python, [setup.python, "-I", "-S", "-B", "-c", fresh.BOOT, *arguments]
