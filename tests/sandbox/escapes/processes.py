"""Attacks on processes and their secrets: on the host's, on the pool's, on the first process of the box."""

from tests.sandbox.escapes.escape import maker

case = maker("processes")

FIND_SECRETS = """
pattern = re.compile(b"CANA" + b"RY-[0-9a-f]{32}")
"""

CASES = [
    case(
        "no signal reaches a process of the host",
        """
for pid in (HOST["victim"], -HOST["victim"]):
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGUSR1, 0):
        attempt("kill", os.kill, pid, number)
attempt("killpg", os.killpg, HOST["victim"], signal.SIGKILL)
attempt("tkill", call, "tkill", HOST["victim"], 9)
attempt("tgkill", call, "tgkill", HOST["victim"], HOST["victim"], 9)
attempt("pidfd", lambda: signal.pidfd_send_signal(os.pidfd_open(HOST["victim"]), signal.SIGKILL))
""",
    ),
    case(
        "a signal to everybody reaches the box alone",
        """
child = os.fork()
if child == 0:
    time.sleep(60)
for number in (signal.SIGCONT, signal.SIGKILL):
    os.kill(-1, number)
say("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""",
        shows="^child -9$",
    ),
    case(
        "killing whatever number there is kills nobody else",
        """
me = {os.getpid(), 0}
found = []
for pid in range(1, 70000):
    if pid in me:
        continue
    try:
        os.kill(pid, signal.SIGKILL)
        found.append(pid)
    except OSError:
        pass
say("found", found)
""",
        shows=r"^found \[1?\]$",
    ),
    case(
        "the first process of the box outlives every signal its program sends",
        """
for number in sorted(signal.valid_signals()):
    try:
        os.kill(1, number)
    except OSError:
        pass
time.sleep(0.1)
say("parent", os.getppid())
""",
        shows="^parent 1$",
    ),
    case(
        "a program that kills its own group ends itself only",
        "os.killpg(0, signal.SIGKILL)",
        exit_code=-9,
        finishes=False,
    ),
    case(
        "a program that is its box's first process outlives its signals to itself and ends",
        """
for number in sorted(signal.valid_signals() - {signal.SIGINT}):
    try:
        os.kill(os.getpid(), number)
    except OSError:
        pass
say("pid", os.getpid())
""",
        has_keeper=False,
        not_in=("landlock", "bwrap"),
        shows="^pid 1$",
    ),
    case(
        "nothing can be traced",
        """
child = os.fork()
if child == 0:
    time.sleep(60)
for request in (0, 16, 0x4206):
    for pid in (0, 1, child, os.getppid(), HOST["victim"]):
        attempt("ptrace", call, "ptrace", request, pid, 0, 0)
os.kill(child, 9)
for path in ("/usr/bin/strace", "/usr/bin/gdb", "/usr/bin/ltrace"):
    if os.path.exists(path):
        result = subprocess.run([path, "-p", "1"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        say(path, result.returncode)
""",
    ),
    case(
        "memory of another process cannot be read or written",
        """
buffer = ctypes.create_string_buffer(4096)
local = struct.pack("PN", ctypes.addressof(buffer), 4096)
for pid in (1, os.getppid(), os.getpid(), HOST["victim"]):
    for name in ("process_vm_readv", "process_vm_writev"):
        attempt(name, call, name, pid, local, 1, struct.pack("PN", 0x400000, 4096), 1, 0)
    attempt("mem", os.open, f"/proc/{pid}/mem", os.O_RDWR) if pid != os.getpid() else None
""",
    ),
    case(
        "no secret of the pool is in the environment",
        """
say("environment", sorted(os.environ))
pointer = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
index = 0
while pointer and pointer[index]:
    say("libc", pointer[index])
    index += 1
say("kernel", read("/proc/self/environ"))
say("shell", subprocess.run(["env"], capture_output=True).stdout)
""",
        shows=r"^environment \['HOME', 'LANG', 'OMP_NUM_THREADS', 'PATH', 'PYTHONDONTWRITEBYTECODE'\]$",
    ),
    case(
        "no secret of the pool is in the arguments",
        """
import sys
say("arguments", sys.argv, sys.orig_argv)
say("kernel", read("/proc/self/cmdline"), read("/proc/self/comm"))
""",
        shows=r"^arguments \['main.py'\]",
    ),
    case(
        "no secret of the pool is in the memory that a fork inherits",
        FIND_SECRETS
        + """
scanned = 0
with open("/proc/self/mem", "rb", 0) as memory:
    for line in open("/proc/self/maps"):
        start, end = (int(word, 16) for word in line.split()[0].split("-"))
        if line.split()[1][0] != "r" or "[v" in line:
            continue
        try:
            memory.seek(start)
            data = memory.read(end - start)
        except OSError:
            continue
        scanned += len(data)
        for found in set(pattern.findall(data)):
            say("GOT", found)
say("scanned", scanned)
""",
        shows=r"^scanned \d{7,}$",
    ),
    case(
        "no secret of the pool is in any object or frame",
        FIND_SECRETS
        + """
import gc
gc.unfreeze()  # or what the process had before the fork would not be listed
strings = 0
for thing in gc.get_objects():
    inside = list(thing.values()) + list(thing) if isinstance(thing, dict) else list(thing) if isinstance(thing,
        (list, tuple, set)) else ()
    for value in inside:
        if isinstance(value, (str, bytes)):
            strings += 1
            data = value.encode(errors="replace") if isinstance(value, str) else value
            if pattern.search(data):
                say("GOT", data)
frame = sys._getframe()
while frame:
    if pattern.search(repr(sorted(frame.f_locals.items(), key=str)).encode(errors="replace")):
        say("GOT a frame", frame.f_code.co_name)
    say("frame", frame.f_code.co_name)
    frame = frame.f_back
say("strings", strings)
""",
        shows=r"^strings \d{4,}$",
    ),
    case(
        "no order of another run is in the memory that a fork inherits",
        """
time.sleep(0.1)
pattern = re.compile(b"OTHER-RUN-[0-9]{6}")
scanned = 0
with open("/proc/self/mem", "rb", 0) as memory:
    for line in open("/proc/self/maps"):
        start, end = (int(word, 16) for word in line.split()[0].split("-"))
        if "rw" in line.split()[1]:
            memory.seek(start)
            data = memory.read(end - start)
            scanned += len(data)
            for found in set(pattern.findall(data)):
                say("GOT", found)
say("scanned", scanned)
""",
        along='note = "OTHER-RUN-314159"; time.sleep(0.5)\n',
        shows=r"^scanned \d{6,}$",
    ),
    case(
        "what a program inherits is its streams and one way to the pool",
        """
import stat
open_ones = []
for number in range(4096):
    try:
        mode = os.fstat(number).st_mode
    except OSError:
        continue
    open_ones.append("way out" if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else "file" if stat.S_ISREG(mode) else oct(mode))
say("inherits", open_ones)
""",
        shows=r"^inherits \['file', 'way out', 'way out', 'way out'\]$",
    ),
    case(
        "what a fresh interpreter inherits is its streams and one way to the pool",
        """
import stat
open_ones = []
for number in range(4096):
    try:
        mode = os.fstat(number).st_mode
    except OSError:
        continue
    open_ones.append("way out" if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else "file" if stat.S_ISREG(mode) else oct(mode))
say("inherits", open_ones)
""",
        fresh=True,
        shows=r"^inherits \['file', 'way out', 'way out', 'way out'\]$",
    ),
    case(
        "descriptors of other processes cannot be fetched",
        """
for pid in (1, os.getppid()):
    try:
        descriptor = os.pidfd_open(pid)
    except OSError as error:
        say("no pidfd", why(error))
        continue
    for number in range(20):
        attempt("pidfd_getfd", call, "pidfd_getfd", descriptor, number, 0)
    attempt("kill by pidfd", signal.pidfd_send_signal, descriptor, signal.SIGRTMAX + 1)
for pid in ("1", str(os.getppid())):
    for number in range(20):
        attempt("open", os.open, f"/proc/{pid}/fd/{number}", os.O_RDWR)
""",
    ),
    case(
        "a daemon that has forgotten its parent ends with its box",
        """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        libc.prctl(1, 0, 0, 0, 0)  # PR_SET_PDEATHSIG
        libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        for number in (0, 1, 2, *report_descriptors()):
            os.close(number)
        time.sleep(600)
    os._exit(0)
os.wait()
""",
    ),
    case(
        "a child that is made the parent's sibling ends with its box",
        """
number = CALLS["clone"]
pid = ctypes.PyDLL(None).syscall(ctypes.c_long(number), ctypes.c_ulong(0x8000 | 17), None, None, None, None)  # CLONE_PARENT
if pid == 0:
    time.sleep(600)
    os._exit(0)
say("sibling", pid > 0)
""",
        shows="^sibling True$",
    ),
    case(
        "no core dump is written and none is piped to a program of the host",
        """
import resource
attempt("core", resource.setrlimit, resource.RLIMIT_CORE, (1 << 20, 1 << 20))
libc.prctl(4, 1, 0, 0, 0)
say("child", in_child(lambda: os.kill(os.getpid(), signal.SIGQUIT)))
say("child", in_child(lambda: ctypes.string_at(0)))
say("files", os.listdir("."))
""",
        shows=r"^child -3\nchild -11\nfiles \['main.py'\]$",
    ),
]
