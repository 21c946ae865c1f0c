"""Boxes without namespaces: what Landlock, a second filter of system calls and a watchful parent (leftovers.py) do instead.

What is not covered: stat() and readlink() tell whether any path exists; the number of the host's processes can be guessed;
nothing bounds all files of a box together, nor their number. What is missing: /proc, /dev/shm (so no locks between processes),
any network, even with oneself; and owners, modes, times and attributes of files cannot be changed, as Landlock would not hinder
a box from changing those of the whole account.
"""

from __future__ import annotations

import contextlib
import errno
import os

from atlas.sandbox.inside import box, kernel, landlock, seccomp, view
from atlas.sandbox.inside.seccomp import AND, ERROR, FIRST, IF_EQUAL, LOAD, RETURN, SECOND, Instruction

TYPE_CHECKING = False
if TYPE_CHECKING:  # see frames.py
    from typing import Any

MIN_LANDLOCK = 6  # signals are kept within a box from here on; Linux 6.12
PROC = "/proc"
OWN_TASKS = 2  # this process and its keeper

# name: (x86-64, aarch64), as in seccomp.py
_REFUSED: seccomp.Table = {
    # other sockets than pairs
    "accept": (43, 202),
    "accept4": (288, 242),
    "bind": (49, 200),
    "connect": (42, 203),
    "listen": (50, 201),
    "socket": (41, 198),
    # what Landlock lets anybody do to files of the same user
    "chmod": (90, None),
    "chown": (92, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "fremovexattr": (199, 16),
    "fsetxattr": (190, 7),
    "futimesat": (261, None),
    "lchown": (94, None),
    "lremovexattr": (198, 15),
    "lsetxattr": (189, 6),
    "removexattr": (197, 14),
    "setxattr": (188, 5),
    "utime": (132, None),
    "utimensat": (280, 88),
    "utimes": (235, None),
    # which names come and go in directories that cannot be read
    "inotify_add_watch": (254, 27),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    # System V objects and queues of the same user
    "mq_unlink": (241, 181),
    "msgctl": (71, 187),
    "msgrcv": (70, 188),
    "msgsnd": (69, 189),
    "semctl": (66, 191),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    # the same user's other processes
    "ioprio_set": (251, 30),
}
_ON_SELF_ONLY: seccomp.Table = {  # their first argument is a process; 0 is the caller
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
}
_SET_PRIORITY = (141, 140)
_SOCKET_PAIR = (53, 199)
_FCNTL = (72, 25)
_UNIX, _STREAM = 1, 1
_KIND_OF_SOCKET = 0xF  # the rest of the argument are flags
_SET_LEASE, _NOTIFY = 1024, 1026


def instructions(machine: str) -> list[Instruction]:
    """The second filter as BPF; the first (seccomp.py) holds as well."""
    column = seccomp.COLUMNS[machine]
    rules = seccomp.refuse_all(_REFUSED, machine)
    is_zero = _unless_zero(FIRST)
    for numbers in _ON_SELF_ONLY.values():
        if (number := numbers[column]) is not None:
            rules[number] = [*is_zero, seccomp.ALLOWED]
    rules[_SET_PRIORITY[column]] = [*is_zero, *_unless_zero(SECOND), seccomp.ALLOWED]
    pair = [(LOAD, 0, 0, FIRST), *_refuse_unless(_UNIX), (LOAD, 0, 0, SECOND), (AND, 0, 0, _KIND_OF_SOCKET)]
    rules[_SOCKET_PAIR[column]] = [*pair, *_refuse_unless(_STREAM), seccomp.ALLOWED]
    commands = [item for code in (_SET_LEASE, _NOTIFY) for item in seccomp.refuse_if(IF_EQUAL, code, errno.EPERM)]
    rules[_FCNTL[column]] = [(LOAD, 0, 0, SECOND), *commands, seccomp.ALLOWED]
    return [*seccomp.begin(machine), *seccomp.search(rules)]


def _unless_zero(argument: int) -> list[Instruction]:
    return [(LOAD, 0, 0, argument), *_refuse_unless(0)]


def _refuse_unless(value: int) -> list[Instruction]:
    return [(IF_EQUAL, 1, 0, value), (RETURN, 0, 0, ERROR | errno.EPERM)]


class Directory:
    """What a box has instead of a file view of its own: one directory that nobody else uses."""

    def __init__(self, path: str, read_only: list[str]) -> None:
        self.path = path
        self.work, self.tests, self.temporary = (os.path.join(path, name) for name in ("work", "tests", "tmp"))
        self._read_only = read_only

    def make(self) -> None:
        os.mkdir(self.path, 0o700)
        for path in (self.work, self.tests, self.temporary):
            os.mkdir(path, 0o700)

    def enter(self, order: dict[str, Any]) -> None:
        """Make runners and programs find it where they look."""
        view.HOME, view.TESTS = self.work, self.tests
        os.environ.update(HOME=self.work, TMPDIR=self.temporary)
        os.chdir(self.work)
        view.put_files(self.work, order["files"])
        view.put_files(self.tests, order["tests"])

    def close(self) -> None:
        """Let this process and all it will start reach nothing else; needs no_new_privs."""
        libraries = "/etc/ld.so.cache"
        program = os.path.dirname(os.path.realpath(__file__))
        wanted = [*view.SYSTEM, libraries, program, *self._read_only, self.tests]
        read_only = [path for path in wanted if os.path.exists(path)]
        landlock.restrict(read_only, [self.work, self.temporary], list(view.DEVICES), deny_network=True)


def isolate(order: dict[str, Any], kept: list[int], *, directory: Directory, is_confined: bool) -> None:
    """Every layer of this tier; without `is_confined` limits only."""
    kernel.close_all_but(kept)
    os.setsid()
    os.umask(0o077)
    os.nice(box.NICENESS)
    others = num_tasks(os.getuid()) - OWN_TASKS
    directory.enter(order)
    if is_confined:
        kernel.drop_capabilities()
        directory.close()
    box.limit(order["limits"], other_processes=others)
    if is_confined:
        seccomp.OURS.install()
        seccomp.Filter(instructions(kernel.MACHINE)).install()


def num_tasks(uid: int) -> int:
    """Processes and threads of this user, as far as they can be seen: the kernel's limit counts them all."""
    num = 0
    for name in os.listdir(PROC):
        with contextlib.suppress(OSError):
            if name.isdecimal() and os.stat(f"{PROC}/{name}").st_uid == uid:
                num += os.stat(f"{PROC}/{name}/task").st_nlink - 2
    return num
