"""Attacks on the kernel's interfaces: calls that reach beyond namespaces, and ways around a filter of calls."""

from tests.sandbox.escapes.escape import maker
from tests.sandbox.escapes.numbers import IS_X86_64

case = maker("kernel")

MACHINE_CODE = """
import mmap
def run_machine_code(code):
    area = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40,
        prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    area.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    return ctypes.CFUNCTYPE(ctypes.c_long)(address)()
"""

X86_64 = [
    case(
        "32-bit calls of an x86-64 process end it",
        MACHINE_CODE
        + """
def attack():
    # mov eax, 20 (getpid); int 0x80; ret
    say("GOT", run_machine_code(bytes.fromhex("b814000000cd80c3")))
say("child", in_child(attack))
""",
        shows="^child -31$",
    ),
    case(
        "32-bit code in a 64-bit process makes no calls",
        MACHINE_CODE
        + """
def attack():
    # push 0x23; lea rax, [rip + 3]; push rax; retfq; then 32-bit: mov eax, 20; int 0x80; hlt
    say("GOT", run_machine_code(bytes.fromhex("6a23488d05030000005048cbb814000000cd80f4")))
say("child", in_child(attack))
""",
        shows="^child -31$",
    ),
    case(
        "calls of the x32 interface do not exist",
        """
for number in (39, 101, 272, 165, 250, 321, 425):
    attempt("x32", call, 0x40000000 | number, 0, 0, 0, 0)
for number in range(512, 548):
    attempt("x32", call, 0x40000000 | number, 0, 0, 0, 0)
""",
        hides=("refused x32 (?!ENOSYS)",),
    ),
    case(
        "the local descriptor table and the ports cannot be touched",
        """
attempt("modify_ldt", call, "modify_ldt", 1, bytes(16), 16)
attempt("iopl", call, "iopl", 3)
attempt("ioperm", call, "ioperm", 0x70, 2, 1)
attempt("vm86", call, 166, 0)
""",
        hides=("refused (modify_ldt|iopl|ioperm) (?!EPERM)",),
    ),
]

CASES = [
    *(X86_64 if IS_X86_64 else ()),
    case(
        "every call of the list is refused, whatever its arguments",
        """
for name in HOST["refused"]:
    for arguments in ((0, 0, 0, 0, 0, 0), (-1, -1, -1, -1, -1, -1), (1, 1, 1, 1, 1, 1)):
        attempt(name, call, name, *arguments)
say("calls", len(HOST["refused"]))
""",
        shows=r"^calls [6-9]\d$",
        hides=(r"^refused (?!create_module|fanotify_mark)\w+ (?!EPERM)",),
    ),
    case(
        "calls that are newer than the list do not exist",
        """
for number in (*range(463, 600), 1000, 65535, 0x3FFFFFFF, 0x7FFFFFFF, -1, -2):
    attempt("new", call, number, 0, 0, 0, 0, 0)
""",
        hides=("refused new (?!ENOSYS)",),
    ),
    case(
        "the filter holds in threads, in children and in other programs",
        """
thread = threading.Thread(target=lambda: attempt("thread", call, "unshare", 0x10000000)); thread.start(); thread.join()
in_child(lambda: attempt("child", call, "unshare", 0x10000000))
code = f"import ctypes; libc = ctypes.CDLL(None, use_errno=True); result = libc.syscall({CALLS['unshare']}, 0x10000000)"
code += "; print('other', result, ctypes.get_errno())"
say(subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True).stdout)
""",
        shows=r"refused thread EPERM\nrefused child EPERM\nother -1 1$",
    ),
    case(
        "no namespace can be made with unshare",
        """
for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x80, 0x7E020080, 0x10020000):
    attempt("unshare", call, "unshare", flag)
""",
    ),
    case(
        "no namespace can be made with clone",
        """
for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x7E020000, 0x10020000,
    0x10000000 | 1 << 40):
    attempt("clone", call, "clone", flag | 17, 0, 0, 0, 0)
""",
        hides=("refused clone (?!EPERM)",),
    ),
    case(
        "no namespace can be made with clone3, which does not exist",
        """
for flag in (0x10000000, 0x20000, 0, 0x80):
    attempt("clone3", call, "clone3", struct.pack("QQQQQQQQQQQ", flag, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0), 88)
""",
        hides=("refused clone3 (?!ENOSYS)",),
    ),
    case(
        "the programs that make namespaces fail",
        """
for argv in (["unshare", "-r", "id"], ["unshare", "-Urm", "true"], ["nsenter", "-t", "1", "-a", "true"], ["bwrap",
    "--bind", "/", "/", "true"],
             ["chroot", "/", "true"], ["setpriv", "--clear-groups", "true"], ["newuidmap", "1", "0", "0", "1"],
             ["mount", "-t", "tmpfs", "x", "/tmp"]):
    try:
        result = subprocess.run(argv, capture_output=True, text=True)
        say("GOT" if result.returncode == 0 else "refused", argv[0], result.returncode)
    except OSError as error:
        say("missing", argv[0], why(error))
""",
    ),
    case(
        "io_uring is not there",
        """
parameters = ctypes.create_string_buffer(120)
attempt("setup", call, "io_uring_setup", 8, parameters)
attempt("enter", call, "io_uring_enter", 3, 1, 1, 0, None, 0)
attempt("register", call, "io_uring_register", -1, 0, None, 0)
""",
        hides=("refused \\w+ (?!EPERM)",),
    ),
    case(
        "page faults cannot be handled in user space",
        """
for flags in (0, 1, 0o2000000, 0o4000):
    attempt("userfaultfd", call, "userfaultfd", flags)
attempt("device", os.open, "/dev/userfaultfd", os.O_RDWR)
""",
    ),
    case(
        "keys and key rings are out of reach",
        """
for command in range(32):
    attempt("keyctl", call, "keyctl", command, -3, 0, 0, 0)
attempt("add_key", call, "add_key", b"user", b"x", b"y", 1, -4)
attempt("request_key", call, "request_key", b"user", b"x", None, -4)
""",
        hides=("refused \\w+ (?!EPERM)",),
    ),
    case(
        "no program can be loaded into the kernel",
        """
instructions = bytes.fromhex("b700000000000000" "9500000000000000")
code = ctypes.create_string_buffer(instructions); licence = ctypes.create_string_buffer(b"GPL")
attribute = struct.pack("IIQQ", 1, 2, ctypes.addressof(code), ctypes.addressof(licence)).ljust(128, b"\\0")
for command in range(40):
    attempt("bpf", call, "bpf", command, attribute, 128)
left, right = socket.socketpair()
attempt("attach", left.setsockopt, socket.SOL_SOCKET, 50, struct.pack("i", 3))  # SO_ATTACH_BPF
""",
    ),
    case(
        "nothing can be measured beyond the process",
        """
attribute = struct.pack("IIQQQQQ", 1, 112, 0, 0, 0, 0, 0).ljust(112, b"\\0")
for pid, cpu in ((0, -1), (-1, 0), (1, -1)):
    attempt("perf", call, "perf_event_open", attribute, pid, cpu, -1, 0)
attempt("syslog", call, "syslog", 3, ctypes.create_string_buffer(4096), 4096)
attempt("syslog", call, "syslog", 10, None, 0)
attempt("lookup_dcookie", call, 212 if os.uname().machine == "x86_64" else 18, 0, 0, 0)
attempt("fanotify", call, "fanotify_init", 0, 0)
""",
        hides=("refused (perf|syslog|fanotify) (?!EPERM)",),
    ),
    case(
        "sockets of no family but unix and the internet's can be made",
        """
for family in range(64):
    if family in (1, 2, 10):
        continue
    for kind in (1, 2, 3, 5):
        for protocol in (0, 1, 16, 255):
            attempt(f"family {family}", call, "socket", family, kind, protocol)
            attempt(f"pair {family}", call, "socketpair", family, kind, protocol, ctypes.create_string_buffer(8))
""",
        hides=(r"refused (family|pair) \d+ (?!EAFNOSUPPORT)",),
    ),
    case(
        "virtual machine sockets, kernel crypto, packets and netlink are not there",
        """
for name, arguments in (("AF_VSOCK", (40, 1, 0)), ("AF_ALG", (38, 5, 0)), ("AF_PACKET", (17, 3, 0x0300)),
    ("AF_PACKET", (17, 2, 0)), ("AF_NETLINK", (16, 3, 0)),
                        ("AF_NETLINK", (16, 2, 9)), ("AF_NETLINK", (16, 3, 15)), ("AF_KEY", (15, 3, 2)),
                        ("AF_BLUETOOTH", (31, 3, 1)), ("AF_CAN", (29, 3, 1)),
                        ("AF_TIPC", (30, 2, 0)), ("AF_XDP", (44, 3, 0)), ("AF_RDS", (21, 5, 0)), ("AF_SMC", (43, 1,
                        0)), ("AF_QIPCRTR", (42, 2, 0))):
    attempt(name, call, "socket", *arguments)
""",
        hides=(r"refused \w+ (?!EAFNOSUPPORT)",),
    ),
    case(
        "raw sockets cannot be made",
        """
for family in (2, 10):
    for protocol in (0, 1, 6, 17, 58, 89, 255):
        attempt("raw", call, "socket", family, 3, protocol)
    attempt("packet", call, "socket", family, 10, 3)
""",
    ),
    case(
        "no line can be typed into a terminal",
        """
buffer = ctypes.create_string_buffer(b"x")
for number in (0, 1, 2):
    for request in (0x5412, 0x541C, 0x5412 | 1 << 32, 0x541C | 1 << 40):
        attempt("ioctl", call, "ioctl", number, request, buffer)
""",
        hides=("refused ioctl (?!EPERM)",),
    ),
    case(
        "no module can be loaded, by hand or by asking for what needs one",
        """
attempt("init", call, "init_module", b"\\x7fELF", 4, b"")
attempt("finit", call, "finit_module", 0, b"", 0)
attempt("delete", call, "delete_module", b"ext4", 0)
for filesystem in (b"btrfs", b"xfs", b"ntfs3", b"hfsplus", b"cramfs", b"fuse"):
    attempt("mount", call, "mount", b"none", b"/tmp", filesystem, 0, None)
with socket.socket() as tcp:
    for algorithm in (b"dctcp", b"vegas", b"hybla", b"yeah"):
        attempt("congestion control", tcp.setsockopt, socket.IPPROTO_TCP, 13, algorithm)
    attempt("tls", tcp.setsockopt, socket.IPPROTO_TCP, 31, b"tls")
for program in ("/sbin/modprobe", "/sbin/insmod"):
    if os.path.exists(program):
        say("status", subprocess.run([program, "dummy"], capture_output=True).returncode != 0)
open("strange", "wb").write(b"\\x01\\x02\\x03\\x04" * 32); os.chmod("strange", 0o755)
attempt("binary format", os.execv, "strange", ["strange"])
""",
        hides=("status False",),
    ),
    case(
        "the way programs are laid out in memory cannot be weakened",
        """
for persona in (0x0040000, 0x0400000, 0x0008, 0x8000000, 0xFFFFFFFF):
    attempt("personality", call, "personality", persona)
attempt("setarch", lambda: subprocess.run(["setarch", "-R", "true"], check=True))
""",
        hides=("refused personality (?!EPERM)",),
    ),
    case(
        "quotas, swap, accounting and restarts are refused",
        """
attempt("quota", call, "quotactl", 0x80000700, b"/dev/vda", 0, ctypes.create_string_buffer(200))
attempt("quota by descriptor", call, "quotactl_fd", os.open("/usr", os.O_RDONLY), 0x80000700, 0, ctypes.create_string_buffer(200))
open("swap", "wb").write(bytes(4096))
attempt("swapon", call, "swapon", b"swap", 0)
attempt("swapoff", call, "swapoff", b"/dev/vda")
attempt("acct", call, "acct", b"swap")
for command in (0, 0x89ABCDEF):  # keyboard off, on: the harmless ones of this call
    attempt("reboot", call, "reboot", 0xFEE1DEAD, 672274793, command, None)
attempt("kexec", call, "kexec_load", 0, 0, None, 0)
attempt("vhangup", call, "vhangup")
""",
        hides=(r"refused [\w ]+ (?!EPERM)E\w+$",),
    ),
    case(
        "names of the machine and its clock cannot be changed",
        """
before = time.time(), time.monotonic()
attempt("hostname", socket.sethostname, "attacked")
attempt("domain", call, "setdomainname", b"attacked", 8)
attempt("settimeofday", call, "settimeofday", struct.pack("qq", 0, 0), None)
attempt("clock", time.clock_settime, time.CLOCK_REALTIME, 0)
attempt("adjust", call, "adjtimex", ctypes.create_string_buffer(struct.pack("I", 1).ljust(208, b"\\0")))
attempt("adjust clock", call, "clock_adjtime", 0, ctypes.create_string_buffer(struct.pack("I", 1).ljust(208, b"\\0")))
attempt("offsets", write, "/proc/self/timens_offsets", "monotonic 1000 0")
say("name", socket.gethostname())
say("clock", abs((time.time() - before[0]) - (time.monotonic() - before[1])) < 1)
""",
        shows=r"^name \w+\nclock True$",
    ),
    case(
        "memory of the machine's nodes and other processes cannot be moved",
        """
for name in ("migrate_pages", "move_pages", "process_madvise", "memfd_secret", "kcmp"):
    for pid in (0, 1, os.getpid()):
        attempt(name, call, name, pid, 1, 0, 0, 0, 0)
for advice in (100, 101):  # poison a page, soft and hard
    page = ctypes.create_string_buffer(8192)
    attempt("poison", call, 28 if os.uname().machine == "x86_64" else 233, ctypes.addressof(page) & ~4095, 4096, advice)
""",
    ),
    case(
        "no lease and no watch can be put on a file that others use",
        """
import fcntl
for path in (HOST["shared_file"], sys.executable, "/etc/passwd", "/usr/bin/env"):
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        continue
    attempt("read lease", fcntl.fcntl, descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
directory = os.open("/usr", os.O_RDONLY)
attempt("notify", fcntl.fcntl, directory, fcntl.F_NOTIFY, 0x80000000 | 0x1F)
time.sleep(1)
""",
        meanwhile="write a shared file",
        limits={"wall_s": 10.0},
    ),
]
