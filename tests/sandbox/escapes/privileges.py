"""Attacks on rights: to have more of them, or to take others theirs."""

from tests.sandbox.escapes.escape import maker

case = maker("processes")

CASES = [
    case(
        "no namespace can be entered",
        """
for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time", "pid_for_children"):
    for pid in ("self", "1", str(os.getppid()), str(HOST["victim"])):
        try:
            descriptor = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
        except OSError as error:
            say("refused open", why(error))
            continue
        attempt("setns", call, "setns", descriptor, 0)
        import fcntl
        for request in (0xb702,):  # NS_GET_PARENT
            attempt("parent namespace", fcntl.ioctl, descriptor, request)
for pid in (1, os.getpid()):
    attempt("setns by pidfd", call, "setns", os.pidfd_open(pid), 0x20000 | 0x10000000)
""",
        hides=(),
        shows="setns EPERM",
    ),
    case(
        "limits of other processes cannot be changed",
        """
import resource
for pid in (HOST["victim"], os.getpid() + 1):
    attempt("prlimit", resource.prlimit, pid, resource.RLIMIT_CPU, (1, 1))
for name in ("AS", "NPROC", "CPU", "NOFILE", "FSIZE", "STACK", "CORE", "MEMLOCK", "MSGQUEUE", "RTPRIO", "NICE", "SIGPENDING"):
    kind = getattr(resource, "RLIMIT_" + name)
    hard = resource.getrlimit(kind)[1]
    attempt("raise " + name, resource.setrlimit, kind, (hard,
        resource.RLIM_INFINITY if hard != resource.RLIM_INFINITY else hard - 1 << 80))
    attempt("raise by prlimit " + name, resource.prlimit, 0, kind, (hard + 1, hard + 1) if hard >= 0 else (1 << 80, 1 << 80))
""",
    ),
    case(
        "tight limits on the box's first process hurt nobody but the box",
        """
import resource
for name in ("AS", "NOFILE", "FSIZE", "NPROC", "CPU", "STACK", "DATA"):
    try:
        resource.prlimit(1, getattr(resource, "RLIMIT_" + name), (0, 0))
        say("lowered", name)
    except OSError as error:
        say("refused", name, why(error))
time.sleep(0.1)
""",
        endings=("exit", "killed"),
    ),
    case(
        "priority, affinity and scheduling of the host's processes stay as they are",
        """
for which, who in ((os.PRIO_USER, os.getuid()), (os.PRIO_USER, 0), (os.PRIO_USER, HOST["uid"]), (os.PRIO_PGRP, 0),
    (os.PRIO_PROCESS, HOST["victim"])):
    try:
        os.setpriority(which, who, 19)
        say("set", which)
    except OSError as error:
        say("refused", why(error))
attempt("affinity", os.sched_setaffinity, HOST["victim"], {0})
attempt("scheduler", os.sched_setscheduler, HOST["victim"], os.SCHED_IDLE, os.sched_param(0))
attempt("ioprio", call, 251 if os.uname().machine == "x86_64" else 30, 1, HOST["victim"], 0x6000)
""",
    ),
    case(
        "priority can only be given up",
        """
for _ in range(3):
    attempt("nice", os.setpriority, os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - 1)
for policy in (os.SCHED_FIFO, os.SCHED_RR, 6):
    attempt("real time", os.sched_setscheduler, 0, policy, os.sched_param(1))
attempt("i/o", call, 251 if os.uname().machine == "x86_64" else 30, 1, 0, 1 << 13)
say("niceness", os.getpriority(os.PRIO_PROCESS, 0) >= 10)
""",
        shows="^niceness True$",
    ),
    case(
        "groups, sessions and terminals of others cannot be joined",
        """
attempt("setpgid", os.setpgid, HOST["victim"], 0)
attempt("join group", os.setpgid, 0, HOST["victim"])
attempt("getsid", os.getsid, HOST["victim"])
attempt("getpgid", os.getpgid, HOST["victim"])
attempt("terminal", os.open, "/dev/tty", os.O_RDWR)
for number in (0, 1, 2):
    attempt("tcsetpgrp", os.tcsetpgrp, number, os.getpid())
    attempt("ttyname", os.ttyname, number)
attempt("new terminal", os.openpty)
""",
        not_in=("landlock",),
    ),
    case(
        "nobody else can be become",
        """
for action in (os.setuid, os.setgid, os.seteuid, os.setegid):
    for identity in (0, 1, 1001, 65534, HOST["uid"]):
        attempt(action.__name__, action, identity)
attempt("setgroups", os.setgroups, [0])
attempt("setresuid", os.setresuid, 0, 0, 0)
attempt("uid map", write, "/proc/self/uid_map", "0 0 1")
attempt("gid map", write, "/proc/self/gid_map", "0 0 1")
attempt("initgroups", os.initgroups, "root", 0)
say("ids", os.getresuid(), os.getresgid(), os.getgroups() in ([], [65534], [1000]))
""",
        shows=r"^ids \(1000, 1000, 1000\) \(1000, 1000, 1000\) True$",
        not_in=("landlock",),
    ),
    case(
        "no capability is left and none can be had",
        """
header, full = struct.pack("Ii", 0x20080522, 0), b"\\xff" * 24
attempt("capset", call, 126 if os.uname().machine == "x86_64" else 91, header, full)
for number in range(41):
    attempt("ambient", lambda: must(libc.prctl(47, 2, number, 0, 0)))
    if libc.prctl(23, number, 0, 0, 0) == 1:
        say("GOT bounding", number)
for bits in (1, 2, 4, 0x2f):
    attempt("securebits", lambda: must(libc.prctl(28, bits, 0, 0, 0)))
libc.prctl(38, 0, 0, 0, 0)
status = read("/proc/self/status").decode()
say(*(line.replace("\\t", "") for line in status.splitlines() if line.startswith(("Cap", "NoNewPrivs", "Seccomp:"))))
""",
        shows=r"CapInh:0+ CapPrm:0+ CapEff:0+ CapBnd:0+ CapAmb:0+ NoNewPrivs:1 Seccomp:2",
        not_in=("landlock",),
    ),
    case(
        "a filter of one's own takes nothing away from ours",
        """
allow = struct.pack("HBBI", 6, 0, 0, 0x7FFF0000)
program = ctypes.create_string_buffer(allow)
filter_ = struct.pack("HxxxxxxP", 1, ctypes.addressof(program))
number = 317 if os.uname().machine == "x86_64" else 277
say("installed", call(number, 1, 0, filter_), call(number, 1, 1, filter_))
attempt("off", lambda: must(libc.prctl(22, 0, 0, 0, 0)))
attempt("unshare", call, "unshare", 0x10000000)
attempt("ptrace", call, "ptrace", 0, 0, 0, 0)
attempt("keyctl", call, "keyctl", 0, -3, 0)
""",
        shows="^installed 0 0$",
    ),
    case(
        "a rule set of one's own takes nothing away from ours",
        """
ruleset = call("landlock_create_ruleset", struct.pack("QQQ", (1 << 13) - 1, 0, 0), 8, 0)
rule = struct.pack("=Qi", (1 << 13) - 1, os.open("/usr", os.O_PATH))
call("landlock_create_ruleset" and 445, ruleset, 1, rule, 0)
rule = struct.pack("=Qi", (1 << 13) - 1, os.open("/etc", os.O_PATH))
call(445, ruleset, 1, rule, 0)
say("restricted", call(446, ruleset, 0))
attempt("write", write, "/usr/lib/" + HOST["marker"])
attempt("write", write, "/etc/" + HOST["marker"])
""",
        shows="^restricted 0$",
    ),
    case(
        "the sandbox's own program gives no more rights when started inside",
        """
program = "/run/atlas/sandbox/inside/zygote.py"
left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
configuration = {"profile": "lite", "python": sys.executable, "uid": 0, "read_only": ["/root", "/home", "/var"]}
result = subprocess.run([sys.executable, "-I", "-S", program, str(right.fileno()), json.dumps(configuration)],
    pass_fds=[right.fileno()],
                        capture_output=True, text=True, timeout=20)
say("status", result.returncode != 0)
left.setblocking(False)
try:
    say("answer", left.recv(1000))
except OSError as error:
    say("answer", why(error))
""",
        shows="^status True$",
        hides=("ready",),
        not_in=("landlock", "bwrap"),
    ),
]
