"""Attacks on files that a box must not change, and on those it must not leave."""

from tests.sandbox.escapes.escape import maker

case = maker("files")

CASES = [
    case(
        "a hard link cannot be made to what is shared, nor a shared file renamed",
        """
for path in (sys.executable, HOST["shared_file"], "/etc/passwd", "/usr/bin/env", HOST["secret_files"][0]):
    attempt("link " + path, os.link, path, "mine")
    attempt("rename " + path, os.rename, path, "mine")
    attempt("unlink " + path, os.unlink, path)
    attempt("exchange " + path, os.replace, "/etc/group", path)
""",
    ),
    case(
        "no mount can be made, moved, changed or taken away",
        """
for source, target, kind, flags in ((b"/proc/1/root", b"/tmp", None, 4096), (b"none", b"/", None, 32 | 4096),
    (b"tmpfs", b"/tmp", b"tmpfs", 0),
        (b"proc", b"/tmp", b"proc", 0), (b"overlay", b"/tmp", b"overlay", 0), (b"/dev/vda", b"/tmp", b"ext4", 1),
        (b"none", b"/", None, 1 << 20)):
    attempt("mount", call, "mount", source, target, kind, flags, None)
for target in (b"/proc", b"/box/work", b"/tmp", b"/usr", b"/"):
    for flags in (0, 2, 8):
        attempt("umount", call, "umount2", target, flags)
attempt("mount_setattr", call, "mount_setattr", -100, b"/usr", 0x8000, struct.pack("QQQQ", 0, 1, 0, 0), 32)
attempt("open_tree", call, "open_tree", -100, b"/", 1 | 0x8000)
attempt("fsopen", call, "fsopen", b"tmpfs", 0)
attempt("fspick", call, "fspick", -100, b"/", 0)
attempt("move_mount", call, "move_mount", -100, b"/tmp", -100, b"/usr", 0)
attempt("pivot_root", call, "pivot_root", b"/tmp", b"/tmp")
say("usr is", "read-only" if os.statvfs("/usr").f_flag & os.ST_RDONLY else "writable")
""",
        shows=r"^usr is read-only$",
        not_in=("landlock",),
    ),
    case(
        "the system, the interpreter and the sandbox's own program cannot be written",
        """
import ssl, json.decoder
places = ["/", "/usr", "/usr/bin", "/usr/local/bin", "/usr/lib", "/etc", "/etc/alternatives", "/run", "/run/atlas",
    "/run/atlas/sandbox/inside",
          "/box", "/dev", "/proc", "/bin", "/lib", os.path.dirname(json.__file__), os.path.dirname(sys.executable),
          sys.prefix, sys.base_prefix,
          HOST["packages"], HOST["drop"], os.path.dirname(HOST["shared_file"])]
for place in places:
    attempt("make in " + place, write, os.path.join(place, HOST["marker"]))
    attempt("directory in " + place, os.mkdir, os.path.join(place, HOST["marker"]))
    attempt("rename " + place, os.rename, place, place + "x")
for path in ("/usr/bin/env", "/etc/passwd", "/etc/ld.so.cache", "/etc/ld.so.preload",
    "/run/atlas/sandbox/inside/box.py", json.decoder.__file__,
             json.decoder.__cached__, ssl.__file__, sys.executable, HOST["shared_file"]):
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_CREAT):
        attempt("open " + path, os.open, path, flags)
    attempt("truncate " + path, os.truncate, path, 0)
    attempt("chmod " + path, os.chmod, path, 0o777)
    attempt("chown " + path, os.chown, path, os.getuid(), os.getgid())
    attempt("touch " + path, os.utime, path)
    attempt("attribute " + path, os.setxattr, path, "user.x", b"1")
""",
    ),
    case(
        "the interpreter cannot be overwritten through /proc/self/exe or a mapping",
        """
import mmap
for path in ("/proc/self/exe", os.path.realpath("/proc/self/exe"), "/proc/self/root" + os.path.realpath(sys.executable)):
    attempt("open", os.open, path, os.O_RDWR)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        say("not even", path, why(error))
        continue
    attempt("again", os.open, f"/proc/self/fd/{descriptor}", os.O_RDWR)
    attempt("map", mmap.mmap, descriptor, 4096, mmap.MAP_SHARED, mmap.PROT_WRITE)
    attempt("write", os.write, descriptor, b"x")
    attempt("truncate", os.ftruncate, descriptor, 0)
    attempt("fchmod", os.fchmod, descriptor, 0o777)
say("map_files", len(os.listdir("/proc/self/map_files")))
for name in os.listdir("/proc/self/map_files"):
    attempt("map_files", os.open, "/proc/self/map_files/" + name, os.O_RDWR)
""",
    ),
    case(
        "the tests cannot be changed from where they are read",
        """
path = "/box/tests/test_it.py"
before = read(path)
for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
    attempt("open", os.open, path, flags)
attempt("new", write, "/box/tests/conftest.py")
attempt("unlink", os.unlink, path)
attempt("rename", os.rename, path, "/box/work/test_it.py")
attempt("over", os.rename, "/box/work/mine.py", path)
attempt("rmdir", os.rename, "/box/tests", "/box/old")
attempt("link", os.symlink, "/box/work", "/box/tests/x")
attempt("chmod", os.chmod, path, 0o777)
attempt("chmod", os.chmod, "/box/tests", 0o777)
attempt("remount", call, "mount", b"none", b"/box/tests", None, 32 | 4096, None)
attempt("umount", call, "umount2", b"/box/tests", 2)
say("tests", read(path) == before == b"assert 1\\n")
""",
        tests={"test_it.py": "assert 1\n"},
        files={"mine.py": "assert 0\n"},
        shows="^tests True$",
    ),
    case(
        "set-uid bits and file capabilities give nothing",
        """
import shutil, stat
shutil.copy("/bin/sh", "shell")
os.chmod("shell", 0o6755)
say("ids", subprocess.run(["./shell", "-c", "id -u; id -g"], capture_output=True, text=True).stdout.split())
attempt("capability", os.setxattr, "shell", "security.capability", struct.pack("<IIIII", 0x02000001, 0xFFFFFFFF, 0,
    0xFFFFFFFF, 0))
for path in ("/bin/su", "/usr/bin/passwd", "/bin/mount", "/usr/bin/sudo", "/usr/bin/newuidmap", "/usr/bin/pkexec",
    "/usr/bin/chsh"):
    if os.path.exists(path):
        result = subprocess.run([path, "--help"], capture_output=True, stdin=subprocess.DEVNULL)
        say("ran", path, result.returncode)
status = read("/proc/self/status").decode()
say("privileges", re.findall(r"NoNewPrivs:\\s(\\d)", status), re.findall(r"Cap\\w+:\\s(\\w+)", status))
say("nosuid", all(os.statvfs(place).f_flag & os.ST_NOSUID for place in ("/usr", "/box/work", "/tmp", "/dev/shm")))
""",
        shows=r"^ids \['1000', '1000'\](.|\n)*^privileges \['1'\] \['0{16}', '0{16}', '0{16}', '0{16}', '0{16}'\]\nnosuid True$",
        not_in=("landlock",),
    ),
    case(
        "the host's temporary files are not the box's, nor the box's the host's",
        """
for place in ("/tmp", "/dev/shm", "/box/work", "/var/tmp"):
    attempt("secret", read, f"{place}/{HOST['marker']}-secret.txt")
    try:
        say("wrote", write(f"{place}/{HOST['marker']}-mine"))
    except OSError as error:
        say("not writable", place)
for place in ("/run", "/var/run", "/var/lock", "/run/lock", "/run/shm", "/var/cache", "/usr/tmp"):
    attempt("write", write, f"{place}/{HOST['marker']}")
""",
        shows=r"^wrote /tmp/.*\nrefused secret ENOENT\nwrote /dev/shm/.*\nrefused secret ENOENT\nwrote /box/work/",
        not_in=("landlock",),
    ),
    case(
        "what an archive unpacks stays inside",
        """
import io, shutil, tarfile, zipfile
names = ["../" * 20 + HOST["drop"][1:] + "/" + HOST["marker"], HOST["drop"] + "/" + HOST["marker"], "/usr/lib/" + HOST["marker"]]
with tarfile.open("attack.tar", "w") as archive:
    for name in names:
        entry = tarfile.TarInfo(name); entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    link = tarfile.TarInfo("link"); link.type = tarfile.SYMTYPE; link.linkname = HOST["drop"]
    archive.addfile(link)
    entry = tarfile.TarInfo("link/" + HOST["marker"]); entry.size = 1
    archive.addfile(entry, io.BytesIO(b"x"))
trusting = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}  # before 3.11.4 all were trusted
for member in tarfile.open("attack.tar").getmembers():
    try:
        tarfile.open("attack.tar").extract(member, "/box/work", **trusting)
        say("unpacked", member.name)
    except OSError as error:
        say("refused", member.name, why(error))
say("there", os.path.exists("/usr/lib/" + HOST["marker"]))
""",
        shows=r"^there False$",
    ),
    case(
        "files are handed from process to process with no more rights than before",
        """
left, right = socket.socketpair()
if os.fork() == 0:
    left.close()
    for path in ("/etc/passwd", "/usr/bin/env", HOST["shared_file"]):
        socket.send_fds(right, [path.encode()], [os.open(path, os.O_RDONLY), os.open(os.path.dirname(path), os.O_PATH)])
    os._exit(0)
right.close()
for _ in range(3):
    path, descriptors, _, _ = socket.recv_fds(left, 100, 2)
    attempt("write", os.write, descriptors[0], b"x")
    attempt("open again", os.open, f"/proc/self/fd/{descriptors[0]}", os.O_RDWR)
    attempt("below", os.open, HOST["marker"], os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=descriptors[1])
    attempt("above", os.open, ".." + HOST["secret_files"][0], os.O_RDONLY, dir_fd=descriptors[1])
""",
    ),
    case(
        "owning a shared file gives no right to it",
        """
path = HOST["shared_file"]
say("owner", os.stat(path).st_uid, "me", os.getuid())
say("text", read(path))
attempt("open", os.open, path, os.O_RDWR)
attempt("chmod", os.chmod, path, 0o666)
attempt("chmod directory", os.chmod, os.path.dirname(path), 0o777)
attempt("unlink", os.unlink, path)
attempt("new neighbour", write, path + ".new")
attempt("acl", os.setxattr, path, "system.posix_acl_access", b"x")
import fcntl
attempt("flags", fcntl.ioctl, os.open(path, os.O_RDONLY), 0x40086602, struct.pack("L", 0x10))
""",
        shows=r"^owner 1000 me 1000\ntext b'all may read this",
        not_in=("landlock",),
    ),
]
