"""Numbers of system calls that a box must not be able to make, written down apart from the filter they test."""

from __future__ import annotations

import platform

from atlas.sandbox.inside import seccomp

_X86_64 = {
    "acct": 163,
    "add_key": 248,
    "adjtimex": 159,
    "bpf": 321,
    "chroot": 161,
    "clock_adjtime": 305,
    "clock_settime": 227,
    "create_module": 174,
    "delete_module": 176,
    "fanotify_init": 300,
    "fanotify_mark": 301,
    "finit_module": 313,
    "fsconfig": 431,
    "fsmount": 432,
    "fsopen": 430,
    "fspick": 433,
    "init_module": 175,
    "io_setup": 206,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "io_uring_setup": 425,
    "ioperm": 173,
    "iopl": 172,
    "kcmp": 312,
    "kexec_file_load": 320,
    "kexec_load": 246,
    "keyctl": 250,
    "memfd_create": 319,
    "memfd_secret": 447,
    "migrate_pages": 256,
    "modify_ldt": 154,
    "mount": 165,
    "mount_setattr": 442,
    "move_mount": 429,
    "move_pages": 279,
    "mq_open": 240,
    "msgget": 68,
    "name_to_handle_at": 303,
    "open_by_handle_at": 304,
    "open_tree": 428,
    "perf_event_open": 298,
    "personality": 135,
    "pidfd_getfd": 438,
    "pivot_root": 155,
    "process_madvise": 440,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "ptrace": 101,
    "quotactl": 179,
    "quotactl_fd": 443,
    "reboot": 169,
    "request_key": 249,
    "semget": 64,
    "setdomainname": 171,
    "sethostname": 170,
    "setns": 308,
    "settimeofday": 164,
    "shmget": 29,
    "swapoff": 168,
    "swapon": 167,
    "syslog": 103,
    "umount2": 166,
    "unshare": 272,
    "uselib": 134,
    "userfaultfd": 323,
    "vhangup": 153,
}
_X86_64_OTHERS = {
    "clone": 56,
    "clone3": 435,
    "getpid": 39,
    "ioctl": 16,
    "socket": 41,
    "socketpair": 53,
    "tkill": 200,
    "tgkill": 234,
}
_AARCH64_OTHERS = {
    "clone": 220,
    "clone3": 435,
    "getpid": 172,
    "ioctl": 29,
    "socket": 198,
    "socketpair": 199,
    "tkill": 130,
    "tgkill": 131,
}
_EVERYWHERE = {"pidfd_open": 434, "pidfd_send_signal": 424, "openat2": 437, "landlock_create_ruleset": 444}

IS_X86_64 = platform.machine() == "x86_64"
_REFUSED_HERE = {name: numbers[1] for name, numbers in seccomp._REFUSED.items() if numbers[1] is not None}
REFUSED: dict[str, int] = _X86_64 if IS_X86_64 else _REFUSED_HERE
OTHERS: dict[str, int] = {**(_X86_64_OTHERS if IS_X86_64 else _AARCH64_OTHERS), **_EVERYWHERE}
