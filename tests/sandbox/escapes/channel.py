"""Attacks on the way to the pool: whatever is written to it, the pool must neither believe it nor fall over it."""

from typing import Any

from tests.sandbox.escapes.escape import Escape, maker

case = maker("channel")

REPORT = """
REPORT = report_descriptors()
say("descriptors", len(REPORT))
def frame(body):
    return struct.pack("!I", len(body)) + body
def send(data, number=None):
    view = memoryview(data)
    while view:
        view = view[os.write(REPORT[0] if number is None else number, view):]
"""
DAMAGED = "descriptors 1$"


def attack(name: str, code: str, **others: Any) -> Escape:
    return case(name, REPORT + code, **{"shows": DAMAGED, **others})


CASES = [
    attack("garbage is no report", 'send(b"\\xff\\x00garbage" * 1000)\n'),
    attack("half a length is no report", 'send(b"\\0\\0")\n'),
    attack("half a frame is no report", 'send(frame(b"[1, 2, 3]")[:-2])\n'),
    attack("a frame that says it is longer than anything is no report", 'send(struct.pack("!I", 0xFFFFFFFF) + b"x" * 1000)\n'),
    attack("a frame of no length is no report", 'send(frame(b"") * 1000)\n'),
    attack("a frame that is no JSON is no report", 'send(frame(b"{\'a\': 1}") + frame(b"undefined") + frame(b"\\xc3\\x28"))\n'),
    attack("a hundred thousand brackets are no report", 'send(frame(b"[" * 100_000) + frame(b"[" * 100_000 + b"]" * 100_000))\n'),
    attack(
        "sixteen megabytes of brackets hold nobody up",
        'send(frame(b"[" * ((16 << 20) - 4)))\n',
        endings=("output",),
        finishes=False,
        alone=True,
    ),
    attack("a number of a million digits is no report", 'send(frame(b"1" * 1_000_000) + frame(b"-" + b"9" * 5000))\n'),
    attack(
        "numbers that are none and strings that are no text are only values",
        r"""
send(frame(b"[NaN, Infinity, -Infinity, 1e999]") + frame(b'"\ud800\udfff\ud800"') + frame(b'{"\u0000": "\u0000"}'))
""",
    ),
    attack(
        "a forged report is only values",
        """
for value in ({"begun": True}, {"passed": True}, {"outcome": "passed"}, {"ended": 1, "status": 0}, {"job": 1,
    "status": 0}, {"fault": None},
              {"failure": "the sandbox broke"}, {"case": 0, "value": ["int", "1"]}, {"results": [["test_it", "passed",
              ""]]}, None, True, 0, "", [], {}):
    send(frame(json.dumps(value).encode()) * 2)
os.write(1, b"done\\n")
os._exit(0)
""",
    ),
    attack(
        "more reports than are kept end the program under that name",
        'while True:\n    send(frame(b"[" + b"1," * 1000 + b"1]"))\n',
        endings=("output",),
        finishes=False,
    ),
    attack(
        "a flood of garbage on the way to the pool ends the program under that name",
        'while True:\n    send(b"\\xff" * 65536)\n',
        endings=("output",),
        finishes=False,
    ),
    attack("millions of small reports hold nobody up", 'send(frame(b"1") * ((16 << 20) // 5 - 10))\n', alone=True),
    attack(
        "a report of millions of values holds nobody up",
        'send(frame(b"[" + b"[]," * 5_000_000 + b"1]"))\n',
        endings=("output",),
        finishes=False,
        alone=True,
    ),
    attack(
        "a report of a million names holds nobody up",
        'send(frame(b"{" + b",".join(b\'"%d":0\' % n for n in range(1_000_000)) + b"}"))\n',
        endings=("output",),
        alone=True,
    ),
    attack("closing the way to the pool hurts nobody", "for number in REPORT:\n    os.close(number)\n"),
    attack(
        "putting something else in its place hurts nobody",
        'os.dup2(1, REPORT[0])\nos.dup2(os.open("/dev/null", os.O_RDWR), REPORT[0])\n',
    ),
    attack(
        "many copies of it in many processes hurt nobody",
        """
for _ in range(40):
    if os.fork() == 0:
        for _ in range(50):
            os.dup(REPORT[0])
        for _ in range(20):
            send(frame(b"[1]") + b"\\xff")
        os._exit(0)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
""",
    ),
    attack(
        "reading the way to the pool takes away what is the program's own, and nothing else",
        """
import fcntl
try:
    reading = os.open(f"/proc/self/fd/{REPORT[0]}", os.O_RDONLY | os.O_NONBLOCK)
    for _ in range(200):
        try:
            say("read", len(os.read(reading, 1 << 20)))
        except BlockingIOError:
            pass
except OSError as error:
    say("refused", why(error))
""",
    ),
    attack(
        "a fresh interpreter that takes back its first report is not a failure of ours",
        """
taken = 0
try:
    reading = os.open(f"/proc/self/fd/{REPORT[0]}", os.O_RDONLY | os.O_NONBLOCK)
    while taken == 0:
        taken += len(os.read(reading, 1 << 20))
except OSError as error:  # not the owner of the pipe, or the pool was faster
    say("refused", why(error))
say("taken", taken)
""",
        fresh=True,
        meanwhile="do something else",
        alone=True,
    ),
    attack(
        "a pipe to the pool whose size is changed still ends",
        """
import fcntl
for size in (4096, 1 << 20, 1 << 16):
    for number in (1, 2, REPORT[0]):
        try:
            fcntl.fcntl(number, 1031, size)
        except OSError as error:
            say("refused", why(error))
send(frame(b"[1]") * 1000)
""",
    ),
    attack(
        "setting the streams to other modes hurts nobody",
        """
import fcntl
for number in (0, 1, 2, REPORT[0]):
    for flags in (os.O_NONBLOCK, os.O_ASYNC, os.O_DIRECT, os.O_APPEND, 0):
        try:
            fcntl.fcntl(number, fcntl.F_SETFL, flags)
        except OSError as error:
            say("refused", why(error))
    fcntl.fcntl(number, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(number, 10, signal.SIGKILL)  # F_SETSIG
""",
        exit_code=None,
        finishes=False,
    ),
    attack(
        "splicing streams into each other hurts nobody",
        """
import fcntl
for _ in range(100):
    for target in (1, 2, REPORT[0]):
        try:
            os.splice(os.open(f"/proc/self/fd/{REPORT[0]}", os.O_RDONLY | os.O_NONBLOCK), target, 65536, flags=2)
        except OSError as error:
            last = error
say("last", why(last))
""",
    ),
    attack(
        "exit codes that other layers use are exit codes",
        """
for code in (97, 137, 139, 124, 255):
    say("child", in_child(lambda: os._exit(code)))
os.write(1, b"done\\n")
os._exit(97)
""",
        exit_code=97,
    ),
    attack(
        "a program that says it was ended by its processor time was not",
        "os.kill(os.getpid(), signal.SIGKILL)\n",
        exit_code=-9,
        finishes=False,
    ),
    attack(
        "what a program says of itself does not look like the pool",
        """
os.write(2, b'{"event": "sandbox.broke", "level": "error"}\\n{"ended":1,"status":0}\\n')
os.write(1, b'{"ended":1,"status":0}\\n1 passed in 0.01s\\nALL TESTS PASSED\\n')
""",
    ),
]
