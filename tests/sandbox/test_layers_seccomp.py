"""The filters of system calls, for both architectures, as the kernel would read them."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from atlas.sandbox.inside import alone, seccomp
from atlas.sandbox.inside.kernel import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    SIGCHLD,
)
from tests.sandbox.bpf import ALLOW, ARCHITECTURES, I386, INSTRUCTION, KILL, ask, refused

MACHINES = [*ARCHITECTURES]
CLONE_NEWTIME = 0x80
CLONE_THREAD_AND_FRIENDS = 0x3D0F00  # what a thread library asks for
HEADERS = {
    "x86_64": [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm/unistd_64.h")],
    "aarch64": [Path("/usr/include/asm-generic/unistd.h")],
}
# Calls that ordinary programs make: (x86-64, aarch64).
ORDINARY: seccomp.Table = {
    "read": (0, 63),
    "write": (1, 64),
    "openat": (257, 56),
    "close": (3, 57),
    "mmap": (9, 222),
    "brk": (12, 214),
    "futex": (202, 98),
    "execve": (59, 221),
    "exit_group": (231, 94),
    "wait4": (61, 260),
    "pipe2": (293, 59),
    "kill": (62, 129),
    "getrandom": (318, 278),
    "statx": (332, 291),
    "rt_sigaction": (13, 134),
    "clock_nanosleep": (230, 115),
    "rename": (82, None),
    "renameat2": (316, 276),
    "unlinkat": (263, 35),
    "mkdirat": (258, 34),
    "getdents64": (217, 61),
    "close_range": (436, 436),
    "pidfd_open": (434, 434),
    "landlock_restrict_self": (446, 446),
    "rseq": (334, 293),
    "mseal": (462, 462),
}


class Filter:
    """One filter on one machine, and calls by (x86-64, aarch64)."""

    def __init__(self, program: list[seccomp.Instruction], machine: str) -> None:
        self._packed = seccomp.packed(program)
        self._machine = machine

    def ask(self, numbers: tuple[int | None, int | None] | int, *arguments: int) -> int:
        number = numbers if isinstance(numbers, int) else numbers[MACHINES.index(self._machine)]
        assert number is not None
        return ask(self._packed, number, *arguments, architecture=ARCHITECTURES[self._machine])


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def first(machine: str) -> Filter:
    """Of every tier."""
    return Filter(seccomp.instructions(machine), machine)


@pytest.fixture
def second(machine: str) -> Filter:
    """Of boxes without namespaces."""
    return Filter(alone.instructions(machine), machine)


def both(table: seccomp.Table, machine: str) -> dict[str, int]:
    column = MACHINES.index(machine)
    return {name: number for name, numbers in table.items() if (number := numbers[column]) is not None}


def test_ordinary_calls_are_allowed(first: Filter, second: Filter, machine: str) -> None:
    for name, number in both(ORDINARY, machine).items():
        assert first.ask(number) == second.ask(number) == ALLOW, name


def test_every_call_of_the_table_is_refused(first: Filter, machine: str) -> None:
    for name, number in both(seccomp._REFUSED, machine).items():
        assert refused(first.ask(number)) == errno.EPERM, name


def test_every_call_of_the_second_table_is_refused(second: Filter, machine: str) -> None:
    for name, number in both(alone._REFUSED, machine).items():
        assert refused(second.ask(number)) == errno.EPERM, name


@pytest.mark.parametrize("table", [seccomp._REFUSED, alone._REFUSED, alone._ON_SELF_ONLY, ORDINARY])
def test_numbers_are_those_of_the_kernel_s_headers(table: seccomp.Table, machine: str) -> None:
    header = next((path for path in HEADERS[machine] if path.exists()), None)
    if header is None:
        pytest.skip("the kernel's headers are not installed")
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\b", header.read_text())}
    newest = max(known.values())
    for name, number in both(table, machine).items():
        if number <= newest:
            assert known[name] == number, name


def test_calls_that_exist_for_one_machine_only_are_not_forgotten_for_the_other() -> None:
    only_x86 = {name for name, (_, arm) in (seccomp._REFUSED | alone._REFUSED).items() if arm is None}
    assert only_x86 == {
        *("ioperm", "iopl", "modify_ldt", "sysfs", "uselib", "ustat"),
        *("chmod", "chown", "futimesat", "inotify_init", "lchown", "utime", "utimes"),
    }


def test_a_call_of_another_architecture_ends_the_process(machine: str) -> None:
    for program in (seccomp.instructions(machine), alone.instructions(machine)):
        others = {I386, *ARCHITECTURES.values()} - {ARCHITECTURES[machine]}
        assert {ask(seccomp.packed(program), 1, architecture=other) for other in others} == {KILL}


@pytest.mark.parametrize("number", [463, 500, 0x40000000, 0x40000001, 0x40000000 + 59, 0x7FFFFFFF, -1])
def test_calls_newer_than_the_table_and_those_of_x32_do_not_exist(first: Filter, number: int) -> None:
    assert refused(first.ask(number)) == errno.ENOSYS


def test_clone3_does_not_exist_so_that_libraries_use_clone(first: Filter) -> None:
    assert refused(first.ask(435)) == errno.ENOSYS


@pytest.mark.parametrize(
    "flag",
    [CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWTIME],
)
def test_no_namespace_can_be_cloned(first: Filter, flag: int) -> None:
    assert refused(first.ask((56, 220), flag | SIGCHLD)) == errno.EPERM
    assert refused(first.ask((56, 220), flag | CLONE_THREAD_AND_FRIENDS)) == errno.EPERM


def test_processes_and_threads_can_be_cloned(first: Filter) -> None:
    assert first.ask((56, 220), SIGCHLD) == ALLOW
    assert first.ask((56, 220), CLONE_THREAD_AND_FRIENDS) == ALLOW


@pytest.mark.parametrize("family", range(46))
def test_sockets_are_of_three_families_only(first: Filter, second: Filter, family: int) -> None:
    verdict = first.ask((41, 198), family, 1, 0)
    assert (verdict == ALLOW) == (family in (1, 2, 10))
    assert verdict == ALLOW or refused(verdict) == errno.EAFNOSUPPORT
    assert refused(second.ask((41, 198), family, 1, 0)) == errno.EPERM


@pytest.mark.parametrize("command", [0x5412, 0x541C, 0x5412 | 1 << 32])
def test_nothing_can_be_typed_into_a_terminal(first: Filter, command: int) -> None:
    assert (
        refused(first.ask((16, 29), 0, command)) == errno.EPERM
    )  # the kernel looks at the low word alone, and so does the filter
    assert first.ask((16, 29), 0, 0x5401) == ALLOW


def test_without_namespaces_only_pairs_of_streams_can_be_made(second: Filter) -> None:
    cloexec = 0o2000000
    assert second.ask((53, 199), 1, 1 | cloexec, 0) == ALLOW
    assert refused(second.ask((53, 199), 1, 2, 0)) == errno.EPERM  # a datagram can be sent to any name
    assert refused(second.ask((53, 199), 2, 1, 0)) == errno.EPERM


@pytest.mark.parametrize("name", alone._ON_SELF_ONLY)
def test_without_namespaces_a_process_governs_only_itself(second: Filter, name: str) -> None:
    assert second.ask(alone._ON_SELF_ONLY[name], 0, 7) == ALLOW
    assert refused(second.ask(alone._ON_SELF_ONLY[name], 4321, 7)) == errno.EPERM


@pytest.mark.parametrize(("which", "who"), [(0, 4321), (1, 0), (2, 0), (2, 1000)])
def test_without_namespaces_nobody_else_s_priority_can_be_set(second: Filter, which: int, who: int) -> None:
    assert refused(second.ask((141, 140), which, who, 5)) == errno.EPERM
    assert second.ask((141, 140), 0, 0, 5) == ALLOW


def test_without_namespaces_nobody_else_s_file_can_be_leased(second: Filter) -> None:
    assert refused(second.ask((72, 25), 3, 1024, 0)) == errno.EPERM
    assert second.ask((72, 25), 3, 1, 0) == ALLOW


def test_a_filter_is_short_enough_for_the_kernel(machine: str) -> None:
    for program in (seccomp.instructions(machine), alone.instructions(machine)):
        assert len(seccomp.packed(program)) // INSTRUCTION.size <= 4096
