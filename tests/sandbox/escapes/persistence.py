"""Attacks by what one run leaves for the next one of the same pool. The second program says GOT if it finds anything."""

from tests.sandbox.escapes.escape import maker

case = maker("persistence")

CASES = [
    case(
        "files are gone when the run has ended",
        """
for place in ("/box/work", "/tmp", "/dev/shm"):
    write(f"{place}/{HOST['marker']}")
    os.mkdir(f"{place}/{HOST['marker']}-directory", 0)
""",
        then="""
for place in ("/box/work", "/tmp", "/dev/shm", "/run", "/var/tmp", "/etc", "/"):
    names = os.listdir(place) if os.path.isdir(place) else []
    if any(HOST["marker"] in name for name in names):
        say("GOT", place)
say("home", os.listdir("/box/work"))
""",
    ),
    case(
        "files that are held open and deleted are gone",
        """
descriptors = [os.open(f"/dev/shm/{n}", os.O_RDWR | os.O_CREAT) for n in range(50)]
for descriptor in descriptors:
    os.write(descriptor, HOST["marker"].encode() * 1000)
if os.fork() == 0:
    time.sleep(600)
""",
        then="""
free = os.statvfs("/dev/shm")
say("GOT less room") if free.f_bfree != free.f_blocks else say("room", free.f_blocks)
say("GOT fewer inodes") if free.f_files - free.f_ffree > 2 else None
""",
        not_in=("landlock",),
    ),
    case(
        "processes are gone when the run has ended",
        """
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        while True:
            time.sleep(1)
""",
        then="""
others = [name for name in os.listdir("/proc") if name.isdigit() and int(name) not in (1, os.getpid())]
say("GOT" if others else "alone", others)
""",
        not_in=("landlock",),
    ),
    case(
        "System V objects and message queues are not there to be left",
        """
for name in ("shmget", "semget", "msgget"):
    attempt(name, call, name, 0x41544C53, *((1,) if name == "semget" else (4096,) if name == "shmget" else ()), 0o1666)
attempt("mq", call, "mq_open", HOST["marker"].encode(), 0o102, 0o666, None)
""",
        then="""
for name in ("shmget", "semget", "msgget"):
    attempt(name, call, name, 0x41544C53, 0, 0)
""",
    ),
    case(
        "abstract sockets and ports are free again",
        """
sockets = [socket.socket(), socket.socket(socket.AF_UNIX)]
sockets[0].bind(("127.0.0.1", HOST["box_port"])); sockets[1].bind("\\0" + HOST["marker"] + "-left")
for one in sockets:
    one.listen()
if os.fork() == 0:
    time.sleep(600)
""",
        then="""
attempt("tcp", socket.create_connection, ("127.0.0.1", HOST["box_port"]), 0.5)
attempt("abstract", socket.socket(socket.AF_UNIX).connect, "\\0" + HOST["marker"] + "-left")
socket.create_server(("127.0.0.1", HOST["box_port"]))
""",
        not_in=("landlock",),
    ),
    case(
        "changed modules are changed in one run only",
        """
import builtins, gc, math, random
json.loads = lambda *a, **k: "poisoned"
math.sqrt = lambda x: "poisoned"
builtins.len = lambda x: 42
builtins.print = lambda *a, **k: None
os.listdir = lambda *a: ["poisoned"]
sys.modules["poison"] = sys
sys.path.insert(0, "/tmp/poison")
sys.setrecursionlimit(500)
sys.setswitchinterval(100)
sys.stdout = sys.stderr = None
sys.meta_path.insert(0, "poison")
sys.dont_write_bytecode = False
random.seed(1)
os.environ["POISON"] = "1"
os.putenv("POISON", "1")
gc.disable()
sys.settrace(lambda *a: None); sys.setprofile(lambda *a: None)
sys.addaudithook(lambda *a: None)
sys.excepthook = sys.unraisablehook = lambda *a: None
say("poisoned")
os.write(1, b"done\\n")
os._exit(0)
""",
        then="""
import builtins, gc, math
faults = [json.loads("[1]") != [1], math.sqrt(4) != 2.0, len([]) != 0, "poisoned" in os.listdir("."),
    "poison" in sys.modules, "/tmp/poison" in sys.path,
          sys.getrecursionlimit() != 1000, sys.getswitchinterval() > 1, "poison" in sys.meta_path,
          "POISON" in os.environ, not gc.isenabled(),
          sys.gettrace() is not None, sys.excepthook is not sys.__excepthook__, sys.stdout is None]
say("GOT" if any(faults) else "clean", faults)
""",
    ),
    case(
        "code that would run at the start of an interpreter cannot be put anywhere",
        """
import sysconfig
text = f"import os; os.write(2, b'GOT started by {HOST['marker']}')\\n"
places = {*sys.path, *sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, HOST["packages"],
    os.path.dirname(os.__file__), "/usr/lib/python3", "/etc/python3",
          "/usr/local/lib/python3.11/dist-packages", "/run/atlas/sandbox/inside", "/run/atlas", os.path.dirname(sys.executable)}
for place in places:
    if place in ("", os.getcwd()):
        continue
    for name in (HOST["marker"] + ".pth", "sitecustomize.py", "usercustomize.py", "python311._pth", "pyvenv.cfg",
        "conftest.py", "json.py"):
        attempt("put", write, os.path.join(place, name), text)
for name in ("sitecustomize.py", "usercustomize.py", HOST["marker"] + ".pth", "json.py", "atlas.py"):
    write("/box/work/" + name, text)
os.makedirs("/box/work/.local/lib/python3.11/site-packages")
write("/box/work/.local/lib/python3.11/site-packages/usercustomize.py", text)
write("/box/work/.pythonrc", text); write("/box/work/.profile", "echo GOT profile\\n")
""",
        then="""
say(subprocess.run([sys.executable, "-c", "print('plain')"], capture_output=True, text=True))
say("modules", "sitecustomize" in sys.modules)
""",
    ),
    case(
        "byte code of the standard library and of packages cannot be poisoned",
        """
import glob, importlib.util, json.decoder, textwrap
targets = [json.decoder.__cached__, importlib.util.cache_from_source(textwrap.__file__),
    importlib.util.cache_from_source(HOST["shared_file"].replace("txt", "py"))]
for path in targets:
    attempt("overwrite", write, path, "poison")
    attempt("replace", os.replace, "/box/work/main.py", path)
    attempt("make", os.makedirs, os.path.dirname(path) + "-new")
    attempt("unlink", os.unlink, path)
import py_compile
attempt("compile", py_compile.compile, textwrap.__file__, None, None, True)
sys.pycache_prefix = "/tmp/cache"; sys.dont_write_bytecode = False
import colorsys
say("cached", colorsys.__cached__)
""",
        then="import textwrap\nsay(textwrap.dedent(' x'))\n",
    ),
    case(
        "memory of the process that all runs are forked from cannot be changed",
        """
import ctypes, gc
number = 257
for thing in gc.get_objects():
    if isinstance(thing, dict) and "BOX_ID" in thing:
        thing["BOX_ID"] = 0
        thing["HOME"] = "/"
for name, module in list(sys.modules.items()):
    if name.startswith("atlas."):
        for key in [k for k in vars(module) if k.isupper()]:
            try:
                setattr(module, key, ())
            except Exception:
                pass
ctypes.c_long.from_address(id(number) + 24).value = 1  # the small integers are shared by all forks until written
say("changed", number)
""",
        then="""
say("ids", os.getuid(), os.getcwd(), 257)
if os.getuid() == 0 or os.getcwd() != "/box/work" or int("256") + 1 != 257:
    say("GOT", os.getuid())
""",
        not_in=("landlock", "bwrap"),
    ),
    case(
        "settings of a stream are gone with the run",
        """
import fcntl
for number in (0, 1, 2):
    fcntl.fcntl(number, fcntl.F_SETFL, fcntl.fcntl(number, fcntl.F_GETFL) | os.O_NONBLOCK | os.O_APPEND)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        say("refused", why(error))
    fcntl.fcntl(number, fcntl.F_SETOWN, os.getpid())
os.lseek(0, 0, 2)
""",
        then="""
import fcntl
for number in (0, 1, 2):
    flags = fcntl.fcntl(number, fcntl.F_GETFL)
    if flags & (os.O_NONBLOCK | os.O_APPEND) or fcntl.fcntl(number, fcntl.F_GETOWN):
        say("GOT", number, flags)
say("input", sys.stdin.read())
""",
        stdin="words",
    ),
    case(
        "locks on shared files are gone with the run",
        """
import fcntl
file = open(HOST["shared_file"], "rb")
try:
    fcntl.flock(file, fcntl.LOCK_EX)
    say("locked")
except OSError as error:
    say("refused", why(error))
if os.fork() == 0:
    os.setsid(); time.sleep(600)
""",
        then="""
import fcntl
try:
    fcntl.flock(open(HOST["shared_file"], "rb"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    say("GOT a lock")
""",
    ),
    case(
        "keys cannot be left in a key ring",
        """
attempt("add", call, "add_key", b"user", HOST["marker"].encode(), b"secret", 6, -4)
attempt("add", call, "add_key", b"user", HOST["marker"].encode(), b"secret", 6, -5)
""",
        then='attempt("find", call, "request_key", b"user", HOST["marker"].encode(), None, -4)\n',
    ),
    case(
        "the limits of a run are those it was given, whatever the last one did",
        """
import resource
for name in ("NOFILE", "NPROC", "CPU", "AS", "FSIZE", "STACK"):
    kind = getattr(resource, "RLIMIT_" + name)
    resource.setrlimit(kind, (resource.getrlimit(kind)[0] // 2,) * 2)
os.nice(5); os.umask(0)
os.write(1, b"done\\n")
os._exit(0)
""",
        then="""
import resource
limits = {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name))[0] for name in ("NOFILE", "NPROC", "FSIZE", "AS")}
is_changed = limits["NOFILE"] != 256 or limits["NPROC"] != 65 or limits["FSIZE"] != 64 << 20
say("GOT" if is_changed or os.nice(0) > 15 or os.umask(0) != 0o077 else "limits", limits)
""",
        not_in=("landlock", "bwrap"),
    ),
    case(
        "a run that was ended in the midst of its work leaves nothing",
        """
for place in ("/box/work", "/tmp", "/dev/shm"):
    write(f"{place}/{HOST['marker']}")
server = socket.create_server(("127.0.0.1", HOST["box_port"]))
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)
""",
        endings=("wall", "memory", "cpu"),
        finishes=False,
        limits={"wall_s": 1.0},
        then="""
for place in ("/box/work", "/tmp", "/dev/shm"):
    attempt("file", os.stat, f"{place}/{HOST['marker']}")
socket.create_server(("127.0.0.1", HOST["box_port"]))
""",
        not_in=("landlock",),
    ),
    case(
        "hash seeds and random numbers of a run tell nothing of the next",
        'import random, uuid; say("random", random.random(), uuid.uuid4(), os.urandom(8).hex())\n',
        then="""
import random, tempfile, uuid
values = [random.random() for _ in range(3)]
pids = [os.fork()]
if pids[0] == 0:
    os._exit(0 if random.random() not in values else 1)
say("same" if os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) else "other", values[0])
""",
    ),
]
