"""Attacks on files that a box must not see."""

from tests.sandbox.escapes.escape import maker

case = maker("files")

CASES = [
    case(
        "a file that all may read cannot be read by its path",
        """
for path in HOST["secret_files"]:
    attempt("open", read, path)
    attempt("stat", os.stat, path)
""",
        not_in=("landlock",),
    ),
    case(
        "what other programs of the box start reads no more than it does",
        """
for path in HOST["secret_files"]:
    for argv in (["cat", path], ["sh", "-c", "cat < " + path], ["dd", "if=" + path], ["head", "-c", "99", path],
        ["tar", "cO", path],
                 [sys.executable, "-c", f"print(open({path!r}).read())"]):
        done = subprocess.run(argv, capture_output=True, text=True)
        say(argv[0], done.returncode, done.stdout, done.stderr[-60:])
""",
        hides=(r"\\b0 \\S*CANARY",),
    ),
    case(
        "accounts, keys and logs of the system are not there",
        """
for path in ("/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/etc/ssh", "/etc/ssl/private", "/etc/machine-id", "/etc/crontab",
             "/etc/environment", "/etc/fstab", "/etc/hostname", "/etc/resolv.conf", "/etc/krb5.keytab", "/var/log", "/var/lib",
             "/var/spool/cron", "/boot", "/root/.ssh", "/home", "/opt", "/srv", "/mnt", "/media", "/run/secrets", "/run/user",
             "/var/run/secrets/kubernetes.io/serviceaccount/token", "/.dockerenv"):
    attempt(path, os.listdir if os.path.isdir(path) else read, path)
say("accounts", sorted(line.split(":")[0] for line in open("/etc/passwd")))
""",
        shows=r"^accounts \['box', 'root'\]$",
        not_in=("landlock",),
    ),
    case(
        "the root directory holds what a program needs and nothing else",
        """
names = set(os.listdir("/"))
interpreters = {path.split("/")[1] for path in (sys.executable, sys.prefix, sys.base_prefix,
    os.path.realpath(sys.executable), HOST["links"])}
say("root", sorted(names - {"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "dev", "proc", "run",
    "tmp", "box"} - interpreters))
say("etc", sorted(set(os.listdir("/etc")) - {"passwd", "group", "hosts", "nsswitch.conf", "alternatives", "ld.so.cache"}))
say("run", os.listdir("/run"), os.listdir("/dev/shm"), os.listdir("/tmp"), os.listdir("/box"), os.listdir("/box/work"))
""",
        shows=r"^root \[\]\netc \[\]\nrun \['atlas'\] \[\] \[\] \['\w+', '\w+'\] \['main.py'\]$",
        not_in=("landlock", "bwrap"),
    ),
    case(
        "no file of the host with a secret's name is anywhere in the view",
        """
seen = 0
for top, directories, names in os.walk("/", onerror=lambda error: None):
    directories[:] = [name for name in directories if os.path.join(top, name) not in ("/proc", "/usr/share", "/usr/include")]
    seen += len(names)
    for name in names:
        if name in ("secret.txt", "id_ed25519") or HOST["marker"] in name or name.endswith("pool.sock1"):
            attempt("found " + os.path.join(top, name), read, os.path.join(top, name))
say("files", seen)
""",
        shows=r"^files \d{4,}$",
        limits={"wall_s": 60.0, "cpu_s": 40.0},
    ),
    case(
        "an interpreter that is a link in a home directory does not bring the home directory along",
        """
say("interpreter", sys.executable)
attempt("home", os.listdir, HOST["home"] + "/.ssh")
attempt("key", read, HOST["home"] + "/.ssh/id_ed25519")
attempt("secret", read, HOST["home"] + "/secret.txt")
""",
        shows=r"^interpreter /var/tmp/",
    ),
    case(
        "/proc/1/root is no way to the host",
        """
for pid in ("1", "self", "thread-self", str(os.getpid()), str(os.getppid()), str(HOST["victim"])):
    for path in HOST["secret_files"]:
        attempt(pid, read, f"/proc/{pid}/root{path}")
        attempt(pid, read, f"/proc/{pid}/cwd/../../../../..{path}")
        attempt(pid, read, f"/proc/{pid}/task/{pid}/root{path}")
""",
        not_in=("landlock",),
    ),
    case(
        "no number of dots leads out of the root",
        """
secret = HOST["secret_files"][0]
attempt("dots", read, "/" + "../" * 400 + secret)
attempt("dots of /proc/self/root", read, "/proc/self/root" + "/.." * 100 + secret)
descriptor = os.open(".", os.O_PATH | os.O_DIRECTORY)
for _ in range(100):
    descriptor = os.open("..", os.O_PATH | os.O_DIRECTORY, dir_fd=descriptor) if _ < 99 else descriptor
attempt("openat", os.open, secret[1:], os.O_RDONLY, dir_fd=descriptor)
os.fchdir(descriptor)
attempt("fchdir", read, "." + secret)
attempt("openat2", call, "openat2", -100, secret.encode(), struct.pack("QQQ", 0, 0, 0), 24)
""",
    ),
    case(
        "the classic way out of a chroot is closed",
        """
os.mkdir("jail")
descriptor = os.open(".", os.O_RDONLY)
attempt("chroot", os.chroot, "jail")
attempt("chroot by number", call, "chroot", b"jail")
os.fchdir(descriptor)
for _ in range(64):
    os.chdir("..")
attempt("chroot back", os.chroot, ".")
attempt("read", read, HOST["secret_files"][0][1:])
""",
    ),
    case(
        "a symbolic link leads nowhere that its maker could not go",
        """
for number, path in enumerate(HOST["secret_files"]):
    os.symlink(path, f"link{number}")
    attempt("through a link", read, f"link{number}")
os.symlink("/proc/1/root", "root")
attempt("through a link to /proc", read, "root" + HOST["secret_files"][0])
os.symlink(HOST["drop"], "drop")
attempt("write through a link", write, "drop/" + HOST["marker"])
""",
    ),
    case(
        "a path that changes while it is opened opens nothing more",
        """
secret = HOST["secret_files"][0]
os.mkdir("plain"); open("plain/secret.txt", "w").write("mine")
os.symlink(os.path.dirname(secret), "other")
stop = time.monotonic() + 0.5
def swap():
    while time.monotonic() < stop:
        for pair in (("plain", "x"), ("other", "plain"), ("x", "other"), ("plain", "x"), ("other", "plain"), ("x", "other")):
            os.rename(*pair)
thread = threading.Thread(target=swap); thread.start()
tries = 0
while time.monotonic() < stop:
    tries += 1
    try:
        text = read("plain/" + os.path.basename(secret))
        if text != b"mine":
            say("GOT", text)
    except OSError:
        pass
thread.join()
say("tries", tries)
""",
        shows=r"^tries \d{3,}$",
    ),
    case(
        "no file can be opened by its handle",
        """
for inode in range(1, 5):
    handle = struct.pack("Ii", 8, 1) + struct.pack("II", inode, 0)
    for descriptor in (0, -100, os.open("/", os.O_RDONLY), os.open("/usr", os.O_RDONLY)):
        attempt("handle", call, "open_by_handle_at", descriptor, handle, 0)
attempt("name", call, "name_to_handle_at", -100, b"/usr", ctypes.create_string_buffer(struct.pack("Ii", 128,
    0) + bytes(128)), ctypes.create_string_buffer(8), 0)
""",
    ),
    case(
        "processes show neither environment nor memory nor files to others",
        """
pids = [name for name in os.listdir("/proc") if name.isdigit()]
for pid in {*pids, "1", "2", str(os.getppid()), str(HOST["victim"])} - {str(os.getpid())}:
    for name in ("environ", "mem", "maps", "stack", "syscall", "auxv", "io", "smaps", "pagemap", "personality", "mountinfo"):
        attempt(f"{pid} {name}", read, f"/proc/{pid}/{name}")
    for name in ("fd", "map_files", "ns", "cwd"):
        attempt(f"{pid} {name}", lambda: [os.readlink(f"/proc/{pid}/{name}/{x}") for x in os.listdir(f"/proc/{pid}/{name}")])
say("sees", len(pids))
""",
        shows=r"^sees [012]$",
        not_in=("landlock",),
    ),
    case(
        "no descriptor leads out of the box",
        """
names = sorted(os.listdir("/proc/self/fd"), key=int)
say("descriptors", len(names) - 1)  # one was of the listing
for name in names:
    try:
        target = os.readlink("/proc/self/fd/" + name)
    except OSError:
        continue
    say("descriptor", name, target.split(":")[0].split(" ")[0])
    attempt("dots", os.open, "..", os.O_RDONLY, dir_fd=int(name))
    attempt("dots by path", os.listdir, f"/proc/self/fd/{name}/..")
""",
        shows=r"^descriptors 4$",
        hides=(
            r"descriptor [0-2] socket",
            r"descriptor \d+ (anon_inode|/(?!dev/null|memfd|proc/))",
        ),
    ),
    case(
        "devices of the machine are not there and cannot be made",
        """
for name in ("mem", "kmem", "port", "kmsg", "sda", "vda", "nvme0n1", "loop0", "loop-control", "kvm", "fuse", "tty",
    "tty0", "console", "ptmx", "pts",
             "net/tun", "vhost-net", "vhost-vsock", "vsock", "userfaultfd", "uinput", "hpet", "rtc0", "snapshot",
             "mapper/control", "dri", "nvidia0",
             "nvidiactl", "snd", "cpu_dma_latency", "disk", "block", "mqueue", "hugepages", "log", "initctl",
             "autofs", "btrfs-control", "watchdog"):
    attempt(name, os.stat, "/dev/" + name)
for kind, major, minor in ((0o60000, 8, 0), (0o60000, 254, 0), (0o60000, 7, 0), (0o20000, 1, 1), (0o20000, 5, 1),
    (0o20000, 10, 232), (0o20000, 1, 3)):
    for place in ("/tmp", "/dev/shm", "/box/work", "/dev"):
        attempt("mknod", os.mknod, place + "/device", kind | 0o666, os.makedev(major, minor))
say("dev", sorted(os.listdir("/dev")))
""",
        shows=r"^dev \['fd', 'full', 'null', 'random', 'shm', 'stderr', 'stdin', 'stdout', 'urandom', 'zero'\]$",
        not_in=("landlock", "bwrap"),
    ),
    case(
        "the kernel's switches are out of reach",
        """
for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/kernel/ns_last_pid",
             "/proc/sys/user/max_user_namespaces", "/proc/sys/vm/drop_caches", "/proc/sys/net/ipv4/ip_forward",
             "/sys/kernel/uevent_helper",
             "/sys/power/state", "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/release_agent",
             "/proc/self/oom_score_adj", "/proc/self/comm",
             "/proc/self/uid_map", "/proc/self/gid_map", "/proc/self/setgroups", "/proc/self/loginuid",
             "/proc/self/timens_offsets",
             "/proc/self/attr/current", "/proc/self/coredump_filter", "/proc/self/clear_refs",
             "/proc/self/make-it-fail", "/proc/self/sched"):
    attempt("write " + path, write, path, "0")
for path in ("/proc/kcore", "/proc/kallsyms", "/proc/keys", "/proc/kmsg", "/proc/modules", "/proc/config.gz",
    "/proc/timer_list", "/proc/cmdline",
             "/proc/version", "/proc/meminfo", "/proc/cpuinfo", "/proc/mounts", "/proc/swaps", "/proc/partitions",
             "/proc/sched_debug", "/proc/locks",
             "/proc/bus/pci/devices", "/proc/acpi", "/proc/scsi/scsi", "/proc/fs", "/proc/irq", "/proc/sysvipc/shm",
             "/sys/kernel/vmcoreinfo"):
    attempt("read " + path, lambda: read(path) or os.listdir(path)) if path != "/proc/mounts" else say("skipped", path)
""",
        not_in=("landlock", "bwrap"),
    ),
    case(
        "sockets and pipes of the host's services are not in the view",
        """
for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock",
    "/run/dbus/system_bus_socket",
             "/run/systemd/private", "/run/systemd/notify", "/tmp/.X11-unix/X0", "/run/user/1000/bus",
             "/run/postgresql", "/tmp/.s.PGSQL.5432",
             "/run/nscd/socket", "/run/udev/control", "/dev/log", "/dev/initctl", HOST["socket_path"] + "1",
             HOST["socket_path"] + "2"):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        attempt(path, socket.socket(socket.AF_UNIX, kind).connect, path)
    attempt("fifo " + path, os.open, path, os.O_WRONLY | os.O_NONBLOCK)
""",
    ),
    case(
        "what is mounted where tells nothing of the host's other files",
        """
text = read("/proc/self/mountinfo").decode()
say("lines", len(text.splitlines()))
for path in HOST["secret_files"] + [HOST["drop"], "/pool.sock"]:
    if path in text:
        say("GOT", path)
""",
        shows=r"^lines \d+$",
    ),
]
