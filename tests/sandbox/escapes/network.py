"""Attacks by the network: to the host, to the world outside, to another box. The host looks whether anything arrived."""

from tests.sandbox.escapes.escape import maker

case = maker("network")

CONNECT = """
def connect(family, address, kind=socket.SOCK_STREAM, timeout_s=0.5):
    with socket.socket(family, kind) as client:
        client.settimeout(timeout_s)
        client.connect(address)
        client.send(HOST["marker"].encode())
        return client.recv(100) if kind == socket.SOCK_DGRAM else "connected"
"""

CASES = [
    case(
        "no server on the host's loopback is reached",
        CONNECT
        + """
for address in ("127.0.0.1", "127.0.0.2", "127.1.2.3", "0.0.0.0", "localhost"):
    for port in (HOST["tcp"], 22, 80, 443, 2375, 5432, 6379, 8080):
        attempt(f"{address} {port}", connect, socket.AF_INET, (address, port))
""",
        hides=(r"refused 127\.0\.0\.1 \d+ (?!ECONNREFUSED|EACCES|ENETUNREACH)",),
    ),
    case(
        "no server on the host's IPv6 loopback is reached",
        CONNECT
        + """
for address in ("::1", "::ffff:127.0.0.1", "::", "fe80::1%lo"):
    try:
        target = socket.getaddrinfo(address, HOST["tcp6"], socket.AF_INET6)[0][4]
    except OSError as error:
        say("no address", why(error))
        continue
    attempt(address, connect, socket.AF_INET6, target)
    attempt(address, connect, socket.AF_INET6, (target[0], HOST["tcp"], 0, 0))
""",
    ),
    case(
        "no datagram reaches the host",
        CONNECT
        + """
for family, address in ((socket.AF_INET, ("127.0.0.1", HOST["udp"])), (socket.AF_INET, ("127.255.255.255",
    HOST["udp"])), (socket.AF_INET6, ("::1", HOST["udp6"]))):
    attempt("datagram", connect, family, address, socket.SOCK_DGRAM)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    for address in ("127.0.0.1", "255.255.255.255", "224.0.0.1", "169.254.255.255"):
        try:
            sender.sendto(HOST["marker"].encode(), (address, HOST["udp"]))
            say("sent into its own network", address)
        except OSError as error:
            say("refused", why(error))
""",
    ),
    case(
        "no address beyond the machine is reached",
        CONNECT
        + """
for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET, "198.51.100.7"), (socket.AF_INET,
    "169.254.169.254"), (socket.AF_INET, "10.0.0.1"),
                        (socket.AF_INET, "172.17.0.1"), (socket.AF_INET, "192.168.0.1"), (socket.AF_INET, "100.100.100.200"),
                        (socket.AF_INET6, "2001:db8::1"), (socket.AF_INET6, "fd00:ec2::254"), (socket.AF_INET6, "fe80::1")):
    for port in (53, 80, 443):
        attempt(f"{address} {port}", connect, family, (address, port))
    attempt(f"{address} datagram", connect, family, (address, 53), socket.SOCK_DGRAM)
""",
        hides=(r"refused \S+ \w+ (?!ENETUNREACH|EHOSTUNREACH|EADDRNOTAVAIL|EINVAL|EACCES)E",),
    ),
    case(
        "no name is resolved",
        """
for name in ("example.com", "metadata.google.internal", "host.docker.internal", "kubernetes.default.svc", "example.org"):
    attempt(name, socket.getaddrinfo, name, 80)
    attempt(name, socket.gethostbyname, name)
say("localhost", socket.gethostbyname("localhost"))
import urllib.request
attempt("http", urllib.request.urlopen, "http://example.com/", timeout=1)
""",
        shows="^localhost 127.0.0.1$",
        not_in=("landlock",),
    ),
    case(
        "the programs that talk to the network get nowhere",
        """
for argv in (["curl", "-m", "1", "http://192.0.2.1/"], ["wget", "-T", "1", "-t", "1", "-O", "-", "http://192.0.2.1/"],
    ["ping", "-c", "1", "-W", "1", "127.0.0.1"],
             ["git", "ls-remote", "git://192.0.2.1/x"], ["ssh", "-o", "ConnectTimeout=1", "192.0.2.1"],
             [sys.executable, "-m", "pip", "download", "--no-deps", "six"]):
    try:
        result = subprocess.run(argv, capture_output=True, text=True, timeout=8, stdin=subprocess.DEVNULL)
        say("GOT" if result.returncode == 0 else "refused", argv[0], result.returncode)
    except (OSError, subprocess.TimeoutExpired) as error:
        say("refused", argv[0], why(error))
""",
        limits={"wall_s": 40.0},
    ),
    case(
        "no abstract socket of the host is reached",
        """
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    name = "\\0" + HOST["abstract"] + f"-{int(kind)}"
    attempt("connect", socket.socket(socket.AF_UNIX, kind).connect, name)
attempt("send", socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto, b"x", "\\0" + HOST["abstract"] + "-2")
for line in open("/proc/self/net/unix") if os.path.exists("/proc/self/net/unix") else ():
    if "@" in line:
        say("GOT", line)
for name in ("@/tmp/.X11-unix/X0", "@/tmp/dbus-x", "@/org/kernel/linux/storage/multipathd", "@ISCSIADM_ABSTRACT_NAMESPACE"):
    attempt(name, socket.socket(socket.AF_UNIX).connect, "\\0" + name[1:])
""",
    ),
    case(
        "no descriptor is sent to the host and none is received",
        """
import array
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))]
    for address in ("\\0" + HOST["abstract"] + "-2", HOST["socket_path"] + "2"):
        attempt("descriptor", sender.sendmsg, [b"x"], rights, 0, address)
""",
    ),
    case(
        "no socket of the host is found by its path",
        """
for base in ("", "/proc/1/root", "/proc/self/root", "/proc/self/cwd/../..", "/proc/thread-self/root"):
    attempt("stream", socket.socket(socket.AF_UNIX).connect, base + HOST["socket_path"] + "1")
    attempt("datagram", socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).connect, base + HOST["socket_path"] + "2")
os.symlink(HOST["socket_path"] + "1", "link")
attempt("link", socket.socket(socket.AF_UNIX).connect, "link")
""",
    ),
    case(
        "there is no interface but the loopback, and none can be made",
        """
import fcntl
say("interfaces", [line.split(":")[0].strip() for line in open("/proc/self/net/dev") if ":" in line])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
    for name, request, data in (("flags", 0x8914, struct.pack("16sh", b"lo", 0)), ("address", 0x8916,
        struct.pack("16sHH4s", b"lo", 2, 0, bytes(4))),
                                ("route", 0x890B, bytes(120)), ("rename", 0x8923, struct.pack("16s16s", b"lo",
                                b"eth0")), ("arp", 0x8955, bytes(60)), ("bridge", 0x89A0, b"br0" + bytes(13))):
        attempt(name, fcntl.ioctl, device, request, data.ljust(120, b"\\0"))
    attempt("mark", device.setsockopt, socket.SOL_SOCKET, 36, struct.pack("i", 1))
    attempt("transparent", device.setsockopt, socket.IPPROTO_IP, 19, 1)
attempt("tun", os.open, "/dev/net/tun", os.O_RDWR)
""",
        shows=r"^interfaces \['lo'\]$",
        hides=(r"refused mark (?!EPERM)",),
        not_in=("landlock", "bwrap"),
    ),
    case(
        "ports of the host are free in a box, and what listens there is not on the host",
        """
for family, address in ((socket.AF_INET, ("127.0.0.1", HOST["box_port"])), (socket.AF_INET, ("0.0.0.0", HOST["tcp"]))):
    server = socket.socket(family); server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(address); server.listen()
    say("listens", address[0])
server = socket.socket(); server.bind(("0.0.0.0", 0)); server.listen()
time.sleep(1)
""",
        shows=r"^listens 127.0.0.1\nlistens 0.0.0.0$",
        meanwhile="connect to its loopback",
        not_in=("landlock",),
    ),
    case(
        "a program may talk to itself over its loopback",
        """
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
other, _ = server.accept()
if os.fork() == 0:
    client.sendall(b"x" * 1_000_000)
    os._exit(0)
total = 0
other.settimeout(5)
while total < 1_000_000:
    total += len(other.recv(65536))
say("talked", total)
""",
        shows="^talked 1000000$",
        not_in=("landlock",),
    ),
    case(
        "what another box listens on is not reached",
        CONNECT
        + """
time.sleep(0.3)
for _ in range(10):
    attempt("tcp", connect, socket.AF_INET, ("127.0.0.1", HOST["box_port"]))
    attempt("abstract", socket.socket(socket.AF_UNIX).connect, "\\0" + HOST["marker"] + "-box")
    attempt("path", socket.socket(socket.AF_UNIX).connect, "/tmp/" + HOST["marker"] + ".sock")
    time.sleep(0.05)
""",
        along="""
servers = [socket.socket(), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
for server, address in zip(servers, (("127.0.0.1", HOST["box_port"]), "\\0" + HOST["marker"] + "-box",
    "/tmp/" + HOST["marker"] + ".sock")):
    server.bind(address); server.listen(); server.settimeout(0.5)
for server in servers:
    attempt("accept", server.accept)
""",
    ),
    case(
        "two boxes can listen on the same port",
        """
server = socket.create_server(("127.0.0.1", HOST["box_port"]))
time.sleep(0.7)
say("listened")
""",
        along='server = socket.create_server(("127.0.0.1", HOST["box_port"])); time.sleep(0.7)\n',
        shows="^listened$",
        not_in=("landlock",),
    ),
    case(
        "other transports of the internet's families reach nobody",
        CONNECT
        + """
for kind, protocol in ((socket.SOCK_STREAM, 262), (socket.SOCK_STREAM, 132), (socket.SOCK_SEQPACKET, 132), (6, 33),
    (socket.SOCK_DGRAM, 136), (socket.SOCK_DGRAM, 1), (socket.SOCK_STREAM, 256)):
    for family, address in ((socket.AF_INET, ("127.0.0.1", HOST["tcp"])), (socket.AF_INET6, ("::1", HOST["tcp6"]))):
        try:
            client = socket.socket(family, kind, protocol)
        except OSError as error:
            say("refused", protocol, why(error))
            continue
        client.settimeout(0.5)
        if kind == socket.SOCK_DGRAM:
            try:
                client.sendto(HOST["marker"].encode(), address)
                say("sent into its own network", protocol)
            except OSError as error:
                say("refused", protocol, why(error))
        else:
            attempt(f"protocol {protocol}", client.connect, address)
""",
    ),
]
