"""Which system calls a box may not make: a filter for this machine, made once.

A list of what is refused, because programs of many kinds must run: what reaches beyond namespaces (keys, io_uring, bpf, other
address families), what could make namespaces, mounts or traces, what holds memory outside the limits, and every call newer than
the tables. A refused call fails with an error, as it would without the privilege; another architecture's call ends the process.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from atlas.sandbox.inside import kernel
from atlas.sandbox.inside.kernel import MACHINE, MACHINES, check

Table = dict[str, tuple[int | None, int | None]]  # name: (x86-64, aarch64); None: does not exist there

_REFUSED: Table = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "inotify_init": (253, None),  # would tell who else reads the files that boxes see; and there are few of them for each user
    "inotify_init1": (294, 26),
    "io_setup": (206, 0),  # aio-max-nr is one number for the whole machine
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "listmount": (458, 458),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "memfd_create": (319, 279),  # memory that belongs to no process
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "semget": (64, 190),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmget": (29, 194),
    "statmount": (457, 457),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
}
_NEWEST = 462  # mseal, Linux 6.10; what came later is unknown to this table
COLUMNS = {machine: column for column, machine in enumerate(MACHINES)}
_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_CLONE, _IOCTL, _SOCKET = (56, 220), (16, 29), (41, 198)
_FCNTL, _SOCKETPAIR, _SETSOCKOPT = (72, 25), (53, 199), (54, 208)
_CLONE3 = 435
_X32_BIT = 0x40000000
_CLONE_NEW_ANY = 0x7E020080  # the namespace flags, time included
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_F_SETLEASE, _F_NOTIFY = 1024, 1026  # they would hold up, or watch, whoever owns a file that boxes see
_SOL_SOCKET, _SO_SNDBUF, _SO_RCVBUF = 1, 7, 8
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6: a box has its own network namespace

LOAD, IF_EQUAL, IF_AT_LEAST, IF_BITS, RETURN, AND = 0x20, 0x15, 0x35, 0x45, 0x06, 0x54
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, FIRST, SECOND, THIRD = 0, 4, 16, 24, 32  # offsets in struct seccomp_data; low words of the first arguments
INSTRUCTION_BYTES = 8

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand
Rules = dict[int, list[Instruction]]  # of one call: they end in a verdict
ALLOWED: Instruction = (RETURN, 0, 0, ALLOW)

_SECCOMP = (317, 277)
_SET_MODE_FILTER = 1


def refuse_if(code: int, operand: int, error: int) -> list[Instruction]:
    return [(code, 0, 1, operand), (RETURN, 0, 0, ERROR | error)]


def begin(machine: str) -> list[Instruction]:
    """The first part of any filter: end whoever calls as another architecture does, and load the number of the call."""
    is_ours = (IF_EQUAL, 1, 0, _AUDIT_ARCH[COLUMNS[machine]])
    return [(LOAD, 0, 0, _ARCH), is_ours, (RETURN, 0, 0, KILL), (LOAD, 0, 0, _NUMBER)]


def refuse_all(table: Table, machine: str) -> Rules:
    numbers = [row[COLUMNS[machine]] for row in table.values()]
    return {number: [(RETURN, 0, 0, ERROR | errno.EPERM)] for number in numbers if number is not None}


def search(rules: Rules) -> list[Instruction]:
    """Find the rules of a call by halves; what has none is allowed.

    A filter that asked for one number after the other would be walked through for every call there is, whenever it is installed:
    the kernel finds out beforehand which calls are always allowed.
    """
    parts: list[tuple[int, list[Instruction]]] = [(0, [ALLOWED])]  # each from its number on, to the next
    for number in sorted(rules):
        if parts[-1][0] == number:
            parts.pop()
        if not parts or parts[-1][1] != rules[number]:
            parts.append((number, rules[number]))
        parts.append((number + 1, [ALLOWED]))
    return _halve(parts)


def _halve(parts: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    if len(parts) == 1:
        return parts[0][1]
    middle = len(parts) // 2
    before = _halve(parts[:middle])
    return [(IF_AT_LEAST, len(before), 0, parts[middle][0]), *before, *_halve(parts[middle:])]


def instructions(machine: str) -> list[Instruction]:
    """The filter as BPF."""
    column = COLUMNS[machine]
    rules = refuse_all(_REFUSED, machine)
    rules[_CLONE3] = [(RETURN, 0, 0, ERROR | errno.ENOSYS)]  # its flags are behind a pointer; libraries fall back to clone
    rules[_CLONE[column]] = [(LOAD, 0, 0, FIRST), *refuse_if(IF_BITS, _CLONE_NEW_ANY, errno.EPERM), ALLOWED]
    terminal = [item for code in (_TIOCSTI, _TIOCLINUX) for item in refuse_if(IF_EQUAL, code, errno.EPERM)]
    rules[_IOCTL[column]] = [(LOAD, 0, 0, SECOND), *terminal, ALLOWED]
    leases = [item for code in (_F_SETLEASE, _F_NOTIFY) for item in refuse_if(IF_EQUAL, code, errno.EPERM)]
    rules[_FCNTL[column]] = [(LOAD, 0, 0, SECOND), *leases, ALLOWED]
    families = [item for family in _FAMILIES for item in ((IF_EQUAL, 0, 1, family), ALLOWED)]
    # A pair would load the module of a family as well.
    rules[_SOCKET[column]] = [(LOAD, 0, 0, FIRST), *families, (RETURN, 0, 0, ERROR | errno.EAFNOSUPPORT)]
    rules[_SOCKETPAIR[column]] = rules[_SOCKET[column]]
    # Buffers of sockets are memory of no process: who asks for larger ones is told that they are, and they stay as they are.
    sizes = [item for option in (_SO_SNDBUF, _SO_RCVBUF) for item in refuse_if(IF_EQUAL, option, 0)]
    of_sockets = [(LOAD, 0, 0, SECOND), (IF_EQUAL, 1, 0, _SOL_SOCKET), ALLOWED, (LOAD, 0, 0, THIRD), *sizes, ALLOWED]
    rules[_SETSOCKOPT[column]] = of_sockets
    newer = refuse_if(IF_AT_LEAST, min(_X32_BIT, _NEWEST + 1), errno.ENOSYS)
    return [*begin(machine), *newer, *search(rules)]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def packed(program: list[Instruction]) -> bytes:
    """A filter as `struct sock_filter[]`."""
    return b"".join(struct.pack("HBBI", code, yes, no, operand) for code, yes, no, operand in program)


HERE = MACHINE if MACHINE in MACHINES else MACHINES[0]  # on another machine nothing is ever filtered, because nothing is run


class Filter:
    """A filter that lies ready to be installed."""

    def __init__(self, program: list[Instruction]) -> None:
        text = packed(program)
        self._buffer = ctypes.create_string_buffer(text, len(text))
        self._program = _Program(len(program), ctypes.addressof(self._buffer))
        self._arguments = (_SECCOMP[COLUMNS[HERE]], _SET_MODE_FILTER, 0, ctypes.byref(self._program))

    def install(self) -> None:
        """Filter this process and all it will start; needs no_new_privs. Of several filters the strictest answer holds."""
        check(kernel.syscall(*self._arguments), "seccomp")


OURS = Filter(instructions(HERE))
