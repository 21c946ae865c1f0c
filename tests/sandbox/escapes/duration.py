"""Attacks on time: by many processes, by those that never end, by floods of output."""

from tests.sandbox.escapes.escape import maker

case = maker("resources")

SHORT = {"wall_s": 2.0}
WALL = ("wall",)

CASES = [
    case(
        "a fork bomb stops at the limit of processes",
        """
import itertools
started = 0
try:
    for started in itertools.count(1):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
except OSError as error:
    say("stopped", started, why(error))
""",
        shows=r"^stopped 6[2-5] EAGAIN$",
    ),
    case(
        "a fork bomb that never waits ends with its time",
        """
while True:
    try:
        os.fork()
    except OSError:
        pass
""",
        endings=("wall", "cpu", "memory"),
        finishes=False,
        limits=SHORT,
    ),
    case(
        "a bomb of shells ends with its time",
        """
subprocess.run(["sh", "-c", "bomb() { bomb | bomb & }; bomb; while :; do :; done"], stderr=subprocess.DEVNULL)
""",
        endings=("wall", "cpu", "memory", "exit"),
        exit_code=None,
        finishes=False,
        limits=SHORT,
    ),
    case(
        "a bomb of threads stops at the limit of processes",
        """
threads = []
try:
    for _ in range(5000):
        threads.append(threading.Thread(target=time.sleep, args=(60,), daemon=True))
        threads[-1].start()
except RuntimeError as error:
    say("stopped", len(threads), error)
os.write(1, b"done\\n")
os._exit(0)
""",
        shows=r"^stopped 6[2-5] can't start new thread$",
    ),
    case(
        "a chain of processes, each of which replaces the last, ends with its time",
        """
while True:
    if os.fork():
        os._exit(0) if os.getpid() != MAIN else time.sleep(60)
""".replace("MAIN", "2"),
        endings=("wall", "cpu"),
        finishes=False,
        limits=SHORT,
    ),
    case(
        "zombies count as processes",
        """
started = 0
try:
    for _ in range(5000):
        if os.fork() == 0:
            os._exit(0)
        started += 1
except OSError as error:
    say("stopped", started, why(error))
""",
        shows=r"^stopped 6[2-4] EAGAIN$",
    ),
    case(
        "orphans are waited for, however many there were",
        """
for _ in range(300):
    child = os.fork()
    if child == 0:
        os.fork()
        os._exit(0)
    os.waitpid(child, 0)
say("orphans", "gone")
""",
        shows="^orphans gone$",
    ),
    case(
        "too much on stdout ends the program under that name",
        """
while True:
    os.write(1, b"x" * 65536)
""",
        endings=("output",),
        finishes=False,
    ),
    case(
        "a flood of stdout from many processes ends them under that name",
        """
def flood():
    while True:
        os.write(1, b"x" * 65536)
in_many(20, flood)
""",
        endings=("output",),
        finishes=False,
    ),
    case(
        "as much stdout as is allowed comes whole",
        """
os.write(1, b"x" * (100_000 - len("begun\\n") - len("done\\n")))
""",
        limits={"output_bytes": 100_000},
    ),
    case(
        "a flood of stderr ends with the program's time",
        """
while True:
    os.write(2, b"x" * 65536)
""",
        endings=("wall", "cpu"),
        finishes=False,
        limits=SHORT,
    ),
    case(
        "a flood of stderr from many processes ends with the program's time",
        """
def flood():
    while True:
        os.write(2, b"y" * 65536)
in_many(30, flood)
""",
        endings=("wall", "cpu"),
        finishes=False,
        alone=True,
        limits=SHORT,
    ),
    case(
        "a line without an end, zeros and bytes that are no text are only bytes",
        """
os.write(1,
    b"\\0" * 1000 + bytes(range(256)) * 10 + b"\\xff\\xfe" * 1000 + b"\\x1b[2J\\x1b]0;title\\x07" + b"x" * 300_000 + b"\\n")
os.write(2, b"\\0\\r\\n\\x85\\xe2\\x80\\xa8" * 1000)
""",
    ),
    case(
        "a program that never ends ends with its time",
        """
while True:
    pass
""",
        endings=WALL,
        finishes=False,
        limits=SHORT,
    ),
    case(
        "a program that sleeps for ever ends with its time",
        "time.sleep(10 ** 8)",
        endings=WALL,
        finishes=False,
        limits=SHORT,
    ),
    case(
        "a program that ignores every signal ends with its time",
        """
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
while True:
    time.sleep(0.001)
""",
        endings=WALL,
        finishes=False,
        limits=SHORT,
    ),
    case(
        "a program that stops itself ends with its time",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        endings=WALL,
        finishes=False,
        limits=SHORT,
    ),
    case(
        "a program that stops all others and waits ends with its time",
        """
for _ in range(5):
    if os.fork() == 0:
        time.sleep(60)
os.kill(-1, signal.SIGSTOP)
time.sleep(60)
""",
        endings=WALL,
        finishes=False,
        limits=SHORT,
    ),
    case(
        "a program that closes its streams ends with its time",
        """
os.closerange(0, 256)
while True:
    time.sleep(0.01)
""",
        endings=WALL,
        finishes=False,
        limits=SHORT,
    ),
    case(
        "a program whose children hold its streams ends when it ends",
        """
for _ in range(10):
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
""",
    ),
    case(
        "time in the kernel is the program's time",
        """
data = bytes(1 << 20)
descriptor = os.open("/dev/urandom", os.O_RDONLY)
while True:
    os.read(descriptor, 1 << 25)
""",
        endings=WALL,
        finishes=False,
        limits=SHORT,
    ),
    case(
        "processor time ends a program under that name",
        """
while True:
    pass
""",
        endings=("cpu",),
        finishes=False,
        limits={"cpu_s": 1.0, "wall_s": 60.0},
    ),
    case(
        "a program that ignores the signal of its processor time ends under that name",
        """
signal.signal(signal.SIGXCPU, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGXCPU})
while True:
    pass
""",
        endings=("cpu",),
        finishes=False,
        limits={"cpu_s": 1.0, "wall_s": 60.0},
    ),
    case(
        "many processes that spin end with their time",
        """
def spin():
    while True:
        pass
in_many(40, spin)
""",
        endings=("wall", "cpu"),
        finishes=False,
        limits=SHORT,
    ),
    case(
        "a full pipe that nobody reads ends with the program's time",
        """
reading, writing = os.pipe()
while True:
    os.write(writing, bytes(4096))
""",
        endings=WALL,
        finishes=False,
        limits=SHORT,
    ),
    case(
        "regular expressions and numbers that explode end with the program's time",
        """
re.match("(a+)+$", "a" * 64 + "b")
""",
        endings=WALL,
        finishes=False,
        limits=SHORT,
    ),
    case(
        "a program that hangs at its end ends with its time",
        """
import atexit
atexit.register(time.sleep, 600)
class Late:
    def __del__(self): time.sleep(600)
late = Late()
""",
        endings=WALL,
        limits=SHORT,
    ),
    case(
        "a thread that never ends ends with the program's time",
        "threading.Thread(target=lambda: time.sleep(600)).start()",
        endings=WALL,
        limits=SHORT,
    ),
]
