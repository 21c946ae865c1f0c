"""What every tier owes, as programs and what must be seen of them. Where a tier does not promise something, `not_in` names it."""

from __future__ import annotations

from typing import Any

import msgspec

from atlas.sandbox.boxes import Ending
from atlas.types import Tier

MIB = 1 << 20
WITHOUT_NAMESPACES: tuple[Tier, ...] = ("landlock", "none")
UNCONFINED: tuple[Tier, ...] = ("none",)


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """One behaviour.

    Attributes:
        name: a sentence; what holds.
        code: of a whole program; @NAME@ stands for a fact about the host (contract.py).
        says: all of its stdout; None: whatever.
        exit_code: if it ends by itself.
        limits: of RunLimits.
        not_in: tiers that do not promise it, and in which it is not tried.
    """

    name: str
    code: str
    says: bytes | None = b"ok\n"
    ending: Ending = "exit"
    exit_code: int | None = 0
    stdin: bytes = b""
    files: dict[str, str] = {}
    tests: dict[str, str] = {}
    limits: dict[str, Any] = {}
    fresh: bool = False
    not_in: tuple[Tier, ...] = ()


BASICS = (
    Promise(name="a program runs and what it prints arrives", code="print('ok')"),
    Promise(name="an exit code arrives", code="import sys; print('ok'); sys.exit(7)", exit_code=7),
    Promise(name="an exit without farewell arrives", code="import os; os.write(1, b'ok\\n'); os._exit(9)", exit_code=9),
    Promise(name="a signal arrives", code="import os; os.kill(os.getpid(), 15)", says=b"", exit_code=-15),
    Promise(name="a crash arrives as its signal", code="import ctypes; ctypes.string_at(0)", says=b"", exit_code=-11),
    Promise(name="an exception is exit code 1", code="raise ValueError('no')", says=b"", exit_code=1),
    Promise(name="no stdin is end of file", code="import sys; assert sys.stdin.read() == ''; print('ok')"),
    Promise(
        name="megabytes of stdin arrive",
        code="import sys; data = sys.stdin.buffer.read(); print(len(data), data.count(b'\\xff'))",
        stdin=b"\xff" * 3 + b"x" * (4 * MIB),
        says=b"%d 3\n" % (4 * MIB + 3),
    ),
    Promise(
        name="bytes that are no text arrive as they are",
        code="import os; os.write(1, bytes(range(256)))",
        says=bytes(range(256)),
    ),
    Promise(
        name="the working directory is the box's own and holds its files",
        code="""
import os, sys
assert os.getcwd() == os.environ['HOME'] and open('data/in.txt').read() == 'given'
os.makedirs('a/b'); open('a/b/c', 'w').write('x'); os.rename('a', 'd')
assert os.listdir('d/b') == ['c'] and sys.argv == ['main.py']
print('ok')""",
        files={"data/in.txt": "given"},
    ),
    Promise(
        name="files are made for nobody else",
        code="import os; open('x', 'w'); print(oct(os.stat('x').st_mode & 0o777))",
        says=b"0o600\n",
    ),
    Promise(
        name="temporary files work",
        code="import tempfile; f = tempfile.NamedTemporaryFile(); f.write(b'x'); d = tempfile.mkdtemp(); print('ok')",
    ),
    Promise(
        name="tests can be read and not written",
        code="""
from atlas.sandbox.inside import view
path = view.TESTS + '/test_it.py'
assert open(path).read() == 'secret'
for action in (lambda: open(path, 'w'), lambda: open(view.TESTS + '/new', 'w'), lambda: __import__('os').unlink(path)):
    try: action()
    except OSError: pass
    else: print('written')
print('ok')""",
        tests={"test_it.py": "secret"},
        not_in=UNCONFINED,
    ),
    Promise(name="threads work", code="import threading; t = threading.Thread(target=print, args=('ok',)); t.start(); t.join()"),
    Promise(
        name="processes share work",
        code="""
import multiprocessing
if __name__ == '__main__':
    with multiprocessing.get_context('fork').Pool(3) as pool:
        assert pool.map(abs, range(-50, 0)) == list(range(50, 0, -1))
    print('ok')""",
        not_in=("landlock",),  # its locks lie in /dev/shm
    ),
    Promise(
        name="other programs can be run",
        code="import subprocess; print(subprocess.run(['/bin/sh', '-c', 'echo ok'], stdout=-1).stdout.decode(), end='')",
    ),
    Promise(
        name="sqlite works",
        code="""
import sqlite3
db = sqlite3.connect('x.db'); db.execute('create table t (v)'); db.execute('insert into t values (1)'); db.commit()
print('ok' if db.execute('select v from t').fetchall() == [(1,)] else 'no')""",
    ),
    Promise(
        name="an event loop works",
        code="""
import asyncio
async def main():
    shell = await asyncio.create_subprocess_exec('/bin/sh', '-c', 'echo ok', stdout=-1)
    print((await shell.communicate())[0].decode(), end='')
asyncio.run(main())""",
    ),
    Promise(
        name="a fresh interpreter works",
        code="import sys; print('ok' if 'asyncio' not in sys.modules else 'warm')",
        fresh=True,
    ),
)

LIMITS = (
    Promise(
        name="output beyond its limit ends the program and is cut",
        code="while True: print('x' * 999)",
        limits={"output_bytes": 5000},
        ending="output",
        says=(b"x" * 999 + b"\n") * 5,
    ),
    Promise(
        name="what was printed before a limit was hit is kept",
        code="import time; print('ok', flush=True); time.sleep(60)",
        limits={"wall_s": 1.5},
        ending="wall",
    ),
    Promise(
        name="processor time ends the program",
        code="print('ok', flush=True)\nwhile True: pass",
        limits={"cpu_s": 1.0, "wall_s": 30.0},
        ending="cpu",
    ),
    Promise(
        name="memory of several processes is counted together",
        code=f"""
import os, time
print('ok', flush=True)
for _ in range(4):
    if os.fork() == 0:
        block = bytearray(b'x') * (24 * {MIB})
        time.sleep(60)
time.sleep(60)""",
        limits={"memory_bytes": 64 * MIB, "wall_s": 30.0},
        ending="memory",
    ),
    Promise(
        name="one process cannot map what it likes",
        code="try: bytearray(64 << 30)\nexcept MemoryError: print('ok')",
    ),
    # Without a user namespace the kernel counts all processes of the user: what starts or ends meanwhile takes or makes room,
    # as many as another box of theirs may have had. Without a limit it would be 500.
    Promise(
        name="the number of processes is limited",
        code="""
import os, time
num = 0
try:
    while num < 500:
        if os.fork() == 0:
            time.sleep(60); os._exit(0)
        num += 1
except BlockingIOError:
    print('ok' if 8 <= num <= 200 else num)""",
        limits={"processes": 60},
    ),
    Promise(
        name="threads count as processes",
        code="""
import threading, time
num = 0
try:
    while num < 500:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); num += 1
except RuntimeError:
    print('ok' if 8 <= num <= 200 else num)""",
        limits={"processes": 60},
    ),
    Promise(
        name="one file cannot grow beyond its limit",
        code=f"""
import errno, os
f = open('big', 'wb')
try:
    for _ in range(20): f.write(bytes({MIB})); f.flush()
except OSError as error:
    print('ok' if error.errno == errno.EFBIG and os.stat('big').st_size == 4 * {MIB} else error)""",
        limits={"file_size_bytes": 4 * MIB},
    ),
    Promise(
        name="all files together cannot grow beyond their limit",
        code=f"""
import errno
try:
    for i in range(20): open(f'f{{i}}', 'wb').write(bytes({MIB}))
except OSError as error:
    print('ok' if error.errno == errno.ENOSPC and 2 <= i <= 4 else (i, error))""",
        limits={"disk_bytes": 4 * MIB},
        not_in=WITHOUT_NAMESPACES,
    ),
    Promise(
        name="the number of files is limited",
        code="""
import errno
try:
    for i in range(5000): open(f'f{i}', 'wb').close()
except OSError as error:
    print('ok' if error.errno == errno.ENOSPC else error)""",
        not_in=WITHOUT_NAMESPACES,
    ),
    Promise(
        name="the number of open files is limited",
        code="""
import errno, os
try:
    while True: os.dup(0)
except OSError as error:
    print('ok' if error.errno == errno.EMFILE else error)""",
    ),
)

ISOLATION = (
    Promise(
        name="the environment holds nothing of the host's",
        code="""
import os
known = {'PATH', 'HOME', 'LANG', 'PYTHONDONTWRITEBYTECODE', 'OMP_NUM_THREADS', 'TMPDIR'}
print(sorted(set(os.environ) - known) or 'ok')""",
    ),
    Promise(
        name="a file outside cannot be read",
        code="try: print(open('@CANARY@').read())\nexcept OSError: print('ok')",
        not_in=UNCONFINED,
    ),
    Promise(
        name="a directory outside cannot be listed",
        code="""
import os
for place in ('@DIRECTORY@', '/root', '/home', '/etc'):
    try:
        assert not {'canary.txt', '.bashrc', '.ssh', 'shadow'} & set(os.listdir(place)), place
    except OSError: pass
print('ok')""",
        not_in=UNCONFINED,
    ),
    Promise(
        name="nothing can be written outside",
        code="""
import os, sys
for place in ('@DIRECTORY@', '/usr', '/usr/bin', '/etc', '/var/tmp', '/run', '/', sys.prefix, os.path.dirname(os.__file__)):
    try: open(place + '/atlas-was-here', 'w')
    except OSError: pass
    else: print('written', place)
print('ok')""",
        not_in=UNCONFINED,
    ),
    Promise(
        name="a server outside cannot be reached",
        code="""
import socket
for family, address in ((2, ('127.0.0.1', @PORT@)), (1, '\\0@ABSTRACT@')):
    try: socket.socket(family).connect(address)
    except OSError: pass
    else: print('connected', address)
print('ok')""",
        not_in=UNCONFINED,
    ),
    Promise(
        name="nothing on the network can be reached or named",
        code="""
import socket
for action in (lambda: socket.create_connection(('192.0.2.1', 9), 2), lambda: socket.getaddrinfo('example.com', 80)):
    try: print('reached', action())
    except OSError: pass
print('ok')""",
        not_in=UNCONFINED,
    ),
    Promise(
        name="a server inside can be reached from inside",
        code="""
import socket
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname()); client.sendall(b'ok')
print(server.accept()[0].recv(9).decode())""",
        not_in=("landlock",),
    ),
    Promise(
        name="only processes of the box are seen",
        code="""
import os
seen = sorted(int(name) for name in os.listdir('/proc') if name.isdecimal())
print('ok' if set(seen) <= {1, os.getpid()} else seen)""",
        not_in=WITHOUT_NAMESPACES,
    ),
    Promise(
        name="no process outside can be signalled",
        code="""
import os
own, outside = {os.getpid()}, []
for pid in range(2, 4000):
    try:
        if pid not in own: os.kill(pid, 0); outside.append(pid)
    except OSError: pass
print(outside or 'ok')""",
        not_in=UNCONFINED,
    ),
    Promise(
        name="only the three streams and the report are open",
        code="""
import os
found = []
for number in range(3, 4096):
    try: os.fstat(number); found.append(number)
    except OSError: pass
print('ok' if len(found) <= 1 else found)""",
    ),
    Promise(
        name="nobody is root",
        code="""
import os
assert os.getuid() != 0 and os.geteuid() != 0
for action in (lambda: os.setuid(0), lambda: os.chroot('.'), lambda: os.mknod('d', 0o60600, 0x801)):
    try: action()
    except OSError: pass
    else: print('allowed')
print('ok')""",
        not_in=UNCONFINED,
    ),
    Promise(
        name="no namespace, mount or trace can be made",
        code="""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for call in (lambda: libc.unshare(0x10000000), lambda: libc.unshare(0x20000), lambda: libc.ptrace(0, 0, 0, 0),
             lambda: libc.mount(b'x', b'/tmp', b'tmpfs', 0, None), lambda: libc.setns(0, 0)):
    try:
        if call() != -1: print('allowed')
    except AttributeError: pass  # a C library without that name
print('ok')""",
        not_in=UNCONFINED,
    ),
    Promise(
        name="no family of sockets beyond the ordinary ones can be opened",
        code="""
import socket
for family in (16, 17, 38, 40):
    try: socket.socket(family, 3 if family < 20 else 1); print('opened', family)
    except OSError: pass
print('ok')""",
        not_in=UNCONFINED,
    ),
)

PROMISES = (*BASICS, *LIMITS, *ISOLATION)
