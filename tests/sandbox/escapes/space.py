"""Attacks on what else there is little of: room on the disk, inodes, descriptors, watches, timers."""

from tests.sandbox.escapes.escape import maker

case = maker("resources")

MB = 1 << 20

CASES = [
    *(
        case(
            f"files in {place} end at the limit of the disk",
            f"""
total = 0
try:
    for number in range(100):
        with open(f"{place}/fill{{number}}", "wb") as file:
            for _ in range(4):
                total += file.write(bytes(1 << 20))
except OSError as error:
    say("stopped", total >> 20, why(error))
""",
            shows=r"^stopped (6|7|8) ENOSPC$",
            limits={"disk_bytes": 8 * MB},
        )
        for place in ("/box/work", "/tmp", "/dev/shm")
    ),
    case(
        "inodes end, and with them small files, links and directories",
        """
import itertools
for place in ("/box/work", "/tmp", "/dev/shm"):
    made = 0
    try:
        for number in itertools.count():
            (os.mkdir if number % 3 else lambda path: os.symlink("x" * 100, path))(f"{place}/{number}")
            made += 1
    except OSError as error:
        say("stopped", made, why(error))
""",
        shows=r"^(stopped (4\d\d\d|39\d\d) ENOSPC\n){3}",
    ),
    case(
        "a directory cannot be made deeper than there are inodes",
        """
made = 0
try:
    while True:
        os.mkdir("d" * 200); os.chdir("d" * 200)
        made += 1
except OSError as error:
    say("stopped", made < 5000, why(error))
""",
        shows="^stopped True ENOSPC$",
    ),
    case(
        "one file ends at the limit of a file, with an error and not a signal",
        """
try:
    with open("huge", "wb") as file:
        while True:
            file.write(bytes(1 << 20))
except OSError as error:
    say("stopped", os.path.getsize("huge") >> 20, why(error))
for action in (lambda: os.truncate("huge", 1 << 40), lambda: os.posix_fallocate(os.open("huge", os.O_RDWR), 0, 1 << 34)):
    attempt("grow", action)
""",
        shows=r"^stopped 4 EFBIG$",
        limits={"file_size_bytes": 4 * MB},
    ),
    case(
        "a file full of holes takes no more than it may",
        """
descriptor = os.open("sparse", os.O_RDWR | os.O_CREAT)
attempt("seek and write", lambda: os.pwrite(descriptor, b"x", 1 << 40))
os.ftruncate(descriptor, 4 << 20)
try:
    for offset in range(0, 4 << 20, 4096):
        os.pwrite(descriptor, b"x", offset)
except OSError as error:
    say("stopped", why(error))
""",
        shows="^stopped ENOSPC$",
        limits={"disk_bytes": 2 * MB, "file_size_bytes": 4 * MB},
    ),
    case(
        "the file that stdin comes from cannot grow without end",
        """
attempt("grow", os.ftruncate, 0, 1 << 40)
try:
    while True:
        os.write(0, bytes(1 << 20))
except OSError as error:
    say("stopped", why(error))
""",
        stdin="words",
        shows="^stopped (EFBIG|EPERM|EBADF)$",
        limits={"file_size_bytes": 4 * MB},
    ),
    case(
        "a mapped file that grows over the disk ends the program with a signal",
        """
import mmap
with open("mapped", "w+b") as file:
    file.truncate(16 << 20)
    area = mmap.mmap(file.fileno(), 16 << 20)
    for start in range(0, 16 << 20, 4096):
        area[start] = 1
""",
        exit_code=-7,
        finishes=False,
        limits={"disk_bytes": 4 * MB},
    ),
    case(
        "descriptors end at their limit",
        """
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    say("stopped", len(held), why(error))
""",
        shows=r"^stopped 25\d EMFILE$",
    ),
    case(
        "descriptors in many processes leave the host its own",
        """
def hold():
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        pass
    time.sleep(0.5)
in_many(50, hold)
""",
        endings=("exit", "memory"),  # what descriptors hold may count as memory
        finishes=False,
    ),
    case(
        "pipes that fill up hold nobody but those who fill them",
        """
held = []
total = 0
try:
    while True:
        held.append(os.pipe())
        os.set_blocking(held[-1][1], False)
        try:
            __import__("fcntl").fcntl(held[-1][1], 1031, 1 << 20)
        except OSError:
            pass
        try:
            while True:
                total += os.write(held[-1][1], bytes(65536))
        except BlockingIOError:
            pass
except OSError as error:
    say("stopped", len(held), why(error), total >> 20)
os.close(held[0][0]); os.close(held[0][1])
reading, writing = os.pipe()
os.write(writing, bytes(4096))
time.sleep(0.3)
""",
        shows=r"^stopped 12\d EMFILE \d+$",
    ),
    case(
        "watches of files leave the host its own",
        """
for _ in range(250):
    attempt("inotify", lambda: must(libc.inotify_init()))
    attempt("inotify", lambda: must(libc.inotify_init1(0)))
time.sleep(1)
""",
        meanwhile="watch files",
        hides=("refused inotify (?!EPERM)",),
    ),
    case(
        "waiting for events leaves the host room to wait",
        """
import select
def register():
    inner = [select.epoll() for _ in range(120)]
    outer = [select.epoll() for _ in range(120)]
    for epoll in outer:
        for other in inner:
            epoll.register(other.fileno())
    time.sleep(1)
in_many(50, register)
""",
        meanwhile="poll events",
        limits={"memory_bytes": 1024 * MB},
        endings=("exit", "memory"),  # what descriptors hold may count as memory
        finishes=False,
    ),
    case(
        "timers end at the limit of pending signals",
        """
class Event(ctypes.Structure):
    _fields_ = (("value", ctypes.c_void_p), ("number", ctypes.c_int), ("notify", ctypes.c_int), ("pad", ctypes.c_char * 64))
made = 0
timer = ctypes.c_void_p()
event = Event(None, signal.SIGRTMIN, 0)
while made < 100_000 and libc.timer_create(1, ctypes.byref(event), ctypes.byref(timer)) == 0:
    made += 1
say("timers", made, why(OSError(ctypes.get_errno(), "")))
""",
        shows=r"^timers 2\d\d EAGAIN$",
    ),
    case(
        "queued signals end at their limit",
        """
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN})
class Value(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("pointer", ctypes.c_void_p))
queued = 0
while queued < 100_000 and libc.sigqueue(os.getpid(), int(signal.SIGRTMIN), Value(1)) == 0:
    queued += 1
say("queued", queued, why(OSError(ctypes.get_errno(), "")))
""",
        shows=r"^queued 2\d\d EAGAIN$",
    ),
]
