"""Attacks on memory: of one process, of many together, and of the kernel on their behalf."""

from tests.sandbox.escapes.escape import maker

case = maker("resources")

MB = 1 << 20
SMALL = {"memory_bytes": 96 * MB}
MEMORY = ("memory",)

CASES = [
    case(
        "memory in one process ends it under that name",
        """
held = []
while True:
    held.append(bytearray(b"x") * (4 << 20))
""",
        endings=MEMORY,
        finishes=False,
        limits=SMALL,
    ),
    case(
        "memory in twenty processes ends them all under that name",
        """
def hold():
    held = bytearray(b"x") * (12 << 20)
    time.sleep(60)
in_many(20, hold)
""",
        endings=MEMORY,
        finishes=False,
        limits={"memory_bytes": 192 * MB},
    ),
    case(
        "memory that walks from process to process is found",
        """
held = bytearray(b"x") * (16 << 20)
while True:
    child = os.fork()
    if child == 0:
        held += bytearray(b"y") * (8 << 20)
        continue
    os._exit(0) if os.getpid() != MAIN else os.waitpid(child, 0) and time.sleep(60)
""".replace("MAIN", "2"),
        endings=MEMORY,
        finishes=False,
        limits=SMALL,
    ),
    case(
        "memory beside zombies is found",
        """
for _ in range(20):
    if os.fork() == 0:
        os._exit(0)
time.sleep(0.1)
def hold():
    held = bytearray(b"x") * (12 << 20)
    time.sleep(60)
in_many(20, hold)
""",
        endings=MEMORY,
        finishes=False,
        limits={"memory_bytes": 192 * MB},
    ),
    case(
        "memory shared between processes is found",
        """
import mmap
area = mmap.mmap(-1, 512 << 20)
for start in range(0, 512 << 20, 4096):
    area[start] = 1
time.sleep(60)
""",
        endings=MEMORY,
        finishes=False,
        limits=SMALL,
    ),
    case(
        "address space has an end of its own",
        """
import mmap
areas = []
try:
    while True:
        areas.append(mmap.mmap(-1, 256 << 20))
except OSError as error:
    say("stopped", len(areas) * 256, why(error))
""",
        shows=r"^stopped (1[5-9]\d\d|20\d\d) ENOMEM$",
        limits=SMALL,
    ),
    case(
        "one huge value is an error of the program's",
        """
for make in (lambda: bytearray(1 << 40), lambda: "x" * (1 << 40), lambda: [0] * (1 << 37),
    lambda: 10 ** 10 and bytearray(3 << 30)):
    try:
        make()
    except MemoryError:
        say("MemoryError")
""",
        shows=r"^(MemoryError\n){4}",
    ),
    case(
        "memory that belongs to no process cannot be had",
        """
attempt("memfd", os.memfd_create, "x")
attempt("secret memory", call, "memfd_secret", 0)
attempt("shmget", call, "shmget", 0, 1 << 20, 0o1600)
attempt("msgget", call, "msgget", 0, 0o1600)
attempt("semget", call, "semget", 0, 100, 0o1600)
attempt("mq_open", call, "mq_open", b"x", 0o102, 0o600, None)
attempt("aio", call, "io_setup", 65536, ctypes.create_string_buffer(8))
""",
    ),
    case(
        "locked memory cannot be had",
        """
page = ctypes.create_string_buffer(1 << 20)
attempt("mlock", lambda: must(libc.mlock(page, 1 << 20)))
attempt("mlockall", lambda: must(libc.mlockall(1)))
import mmap
attempt("locked map", lambda: mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x2000))
attempt("huge pages", lambda: mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000))
""",
    ),
    case(
        "recursion without an end is an error, or a signal, of the program's",
        """
def deeper(): return deeper()
try:
    deeper()
except RecursionError:
    say("RecursionError")
def attack():
    sys.setrecursionlimit(10 ** 9)
    deeper_still = lambda f: [f(f)]
    repr(deeper_still(deeper_still))
say("child", in_child(attack))
""",
        shows=r"^RecursionError$",
        endings=("exit", "memory"),
        finishes=False,
        exit_code=None,
    ),
    case(
        "a stack that grows without an end is a signal of the program's",
        """
sys.setrecursionlimit(10 ** 6)
class Deep:
    def __getattr__(self, name): return getattr(self, name + "x")
say("child", in_child(lambda: Deep().x))
""",
        endings=("exit", "memory"),
        finishes=False,
        exit_code=None,
        limits={"memory_bytes": 256 * MB},
    ),
    case(
        "who shall die first when memory ends is not the program's to say",
        """
for value in ("-1000", "-1", "0", "499"):
    attempt("oom_score_adj", write, "/proc/self/oom_score_adj", value)
    attempt("oom_adj", write, "/proc/self/oom_adj", "-17")
say("score", read("/proc/self/oom_score_adj"))
""",
        shows=r"^score b'500",
        not_in=("landlock", "bwrap"),
    ),
    case(
        "buffers of sockets are memory too",
        """
def fill():
    pairs = []
    try:
        while True:
            pair = socket.socketpair()
            pairs.append(pair)
            for end in pair:
                end.setblocking(False)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 23)
                try:
                    while True:
                        end.send(bytes(65536))
                except BlockingIOError:
                    pass
    except OSError as error:
        pass
    time.sleep(60)
in_many(12, fill)
""",
        endings=MEMORY,
        finishes=False,
        limits={**SMALL, "wall_s": 5.0},
    ),
    case(
        "buffers of loopback connections hold next to nothing",
        """
server = socket.create_server(("127.0.0.1", 0))
pairs, total = [], 0
for _ in range(60):
    client = socket.create_connection(server.getsockname())
    other = server.accept()[0]
    pairs.append((client, other))
    for end in (client, other):
        end.setblocking(False)
        idle = 0
        while idle < 5:
            try:
                total += end.send(bytes(1 << 16))
                idle = 0
            except BlockingIOError:
                idle += 1
                time.sleep(0.001)
say("held", total >> 20)
""",
        shows=r"^held \d\d?$",
    ),
    case(
        "maps without end leave others their time",
        """
import mmap
def split():
    area = mmap.mmap(-1, 60000 * 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for page in range(0, 60000, 2):
        libc.mprotect(ctypes.c_void_p(address + page * 4096), 4096, 1)
    time.sleep(60)
in_many(40, split)
""",
        endings=("wall", "memory", "cpu"),
        finishes=False,
        alone=True,
        limits={**SMALL, "wall_s": 5.0},
    ),
]
