"""Languages beside Python: the same boxes, the same limits, the same attacks.

Attack programs run in a box only. What they must not reach (a canary, a listener, a place to write) is watched from outside.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas.errors import BadRequest
from atlas.sandbox import Sandbox
from atlas.types import Case, Execution, Program, RunLimits
from tests.sandbox.conftest import has_tool

SHORT = RunLimits(wall_s=1.5, cpu_s=1.0, memory_bytes=192 * 1024 * 1024)
TOOLS = {"javascript": "node", "c++": "g++", "c": "gcc", "bash": "bash", "go": "go", "rust": "rustc"}
ADD = {
    "javascript": "const t = require('fs').readFileSync(0, 'utf8').split(/\\s+/);\nconsole.log(Number(t[0]) + Number(t[1]));",
    "c++": '#include <cstdio>\nint main() { int a, b; scanf("%d %d", &a, &b); printf("%d\\n", a + b); }',
    "c": '#include <stdio.h>\nint main(void) { int a, b; scanf("%d %d", &a, &b); printf("%d\\n", a + b); return 0; }',
    "bash": "read a b; echo $((a + b))",
    "go": 'package main\nimport "fmt"\nfunc main() { var a, b int; fmt.Scan(&a, &b); fmt.Println(a + b) }',
    "rust": (
        "use std::io::*;\nfn main() { let mut s = String::new(); stdin().read_to_string(&mut s).unwrap();"
        'let v: Vec<i64> = s.split_whitespace().map(|x| x.parse().unwrap()).collect(); println!("{}", v[0] + v[1]); }'
    ),
}
# Headers of C only: the library of C++ takes two seconds to compile.
CPP = """
#include <arpa/inet.h>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <initializer_list>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
static void refused(const char* what, long result) { printf("%%s %%s\\n", result < 0 ? "refused" : "GOT", what); fflush(stdout); }
static void use(char* p) { asm volatile("" : : "r"(p) : "memory"); }
static void* wait(void*) { pause(); return nullptr; }
int main() { %s puts("done"); }
"""
JS = "const fs = require('fs'), net = require('net'), cp = require('child_process');\n%s\n"

# (language, what holds, program; @READ@, @PORT@ and @WRITE@ stand for what the host has)
ESCAPES = [
    ("c++", "a file of the host is not there", "refused(\"open\", open(\"@READ@\", O_RDONLY));"),
    ("c++", "no file of the host is made", "refused(\"create\", open(\"@WRITE@\", O_CREAT | O_WRONLY, 0666));"),
    ("c++", "nothing of the host answers", """
        int s = socket(AF_INET, SOCK_STREAM, 0); sockaddr_in a{}; a.sin_family = AF_INET; a.sin_port = htons(@PORT@);
        inet_pton(AF_INET, "127.0.0.1", &a.sin_addr); refused("connect", connect(s, (sockaddr*)&a, sizeof a));"""),
    ("c++", "no family of sockets reaches beyond the namespace", """
        for (int family : {16, 17, 38, 40, 31}) refused("socket", socket(family, SOCK_RAW, 0));"""),
    ("c++", "no namespace, mount or trace is made", """
        refused("unshare", unshare(CLONE_NEWUSER)); refused("mount", mount("none", "/tmp", "tmpfs", 0, ""));
        refused("ptrace", ptrace(PTRACE_ATTACH, 1, 0, 0)); refused("chroot", chroot("/tmp"));
        refused("clone", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));"""),
    ("c++", "no interface of the kernel beyond the box opens", """
        for (long call : {321L, 298L, 323L, 425L, 250L, 248L, 319L, 29L, 304L, 175L, 246L, 169L, 155L, 310L, 435L})
            refused("call", syscall(call, 0, 0, 0, 0, 0, 0));"""),
    ("c++", "no process of the host gets a signal", "for (int pid = 3; pid < 4000; pid++) if (kill(pid, 0) == 0) printf(\"GOT %d\", pid);"),
    ("c++", "the other set of system calls ends the program", "asm volatile(\"int $0x80\" :: \"a\"(20)); puts(\"GOT i386\");"),
    ("javascript", "a file of the host is not there", "try { console.log('GOT', fs.readFileSync('@READ@', 'utf8')) } catch (e) { console.log('refused', e.code) }"),
    ("javascript", "no file of the host is made", "try { fs.writeFileSync('@WRITE@', 'x'); console.log('GOT') } catch (e) { console.log('refused', e.code) }"),
    ("javascript", "nothing of the host answers", "net.connect(@PORT@, '127.0.0.1').on('connect', () => console.log('GOT')).on('error', e => console.log('refused', e.code))"),
    ("javascript", "the environment holds nothing of the host", "console.log('refused', Object.keys(process.env).filter(k => /SECRET|KEY|TOKEN|HOST|USER/.test(k)).length === 0 ? 'env' : 'GOT')"),
    ("javascript", "a shell it starts is in the same box", "console.log('refused', cp.spawnSync('cat', ['@READ@']).status !== 0 ? 'cat' : 'GOT')"),
    ("javascript", "processes of the host are not seen", "console.log('refused', fs.readdirSync('/proc').filter(n => /^\\d+$/.test(n) && +n > 64).length ? 'GOT' : 'proc')"),
    ("bash", "a file of the host is not there", "cat @READ@ && echo GOT || echo refused"),
    ("bash", "no file of the host is made", "echo x > @WRITE@ && echo GOT || echo refused"),
    ("bash", "nothing of the host answers", "exec 3<>/dev/tcp/127.0.0.1/@PORT@ && echo GOT; echo refused"),
]  # fmt: skip

ABUSES = [
    ("c++", "a loop", "for (;;) {}", ("timeout",), ("cpu", "wall")),
    ("c++", "sleep", "sleep(60);", ("timeout",), ("wall",)),
    ("c++", "memory", "for (;;) { char* p = new char[16 << 20]; memset(p, 1, 16 << 20); use(p); }", ("memory_limit", "failed"), ("memory", None)),
    ("c++", "memory of many", "for (int i = 0; i < 12; i++) if (!fork()) { char* p = (char*)malloc(64 << 20); memset(p, 1, 64 << 20); use(p); pause(); } sleep(60);", ("memory_limit",), ("memory",)),
    ("c++", "output", "static char x[65536]; for (;;) write(1, x, sizeof x);", ("output_limit",), ("output",)),
    ("c++", "forks", "for (;;) if (fork() < 0) sleep(60);", ("timeout", "memory_limit"), ("wall", "cpu", "memory")),
    ("c++", "threads", "pthread_t t; for (;;) if (pthread_create(&t, nullptr, wait, nullptr)) abort();", ("failed", "killed"), ("processes", None)),
    ("c++", "a daemon", "if (!fork()) { setsid(); if (!fork()) for (;;) {} _exit(0); }", ("completed",), (None,)),
    ("c++", "a crash", "*(volatile int*)0 = 1;", ("failed",), (None,)),
    ("javascript", "a loop", "for (;;) {}", ("timeout",), ("cpu", "wall")),
    ("javascript", "memory", "const a = []; for (;;) a.push(Buffer.alloc(16 << 20, 1));", ("memory_limit", "failed"), ("memory", None)),
    ("javascript", "output", "for (;;) fs.writeSync(1, 'x'.repeat(65536));", ("output_limit",), ("output",)),
    ("bash", "forks", "f() { f | f & }; f; sleep 60", ("timeout", "memory_limit"), ("wall", "cpu", "memory")),
]  # fmt: skip


class Host:
    """What attacks aim at."""

    def __init__(self, folder: Path) -> None:
        self.secret = "CANARY-" + secrets.token_hex(16)
        self.read = folder / "secret.txt"
        self.read.write_text(self.secret)
        self.write = folder / "written.txt"
        folder.chmod(0o777)
        self.accepted = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            connection.close()

    def aim(self, code: str) -> str:
        return code.replace("@READ@", str(self.read)).replace("@WRITE@", str(self.write)).replace("@PORT@", str(self.port))

    def check(self, execution: Execution) -> None:
        assert self.secret not in execution.stdout + execution.stderr
        assert not self.write.exists()
        assert self.accepted == 0

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def need(language: str) -> None:
    if not has_tool(TOOLS[language]):
        pytest.skip(f"no {TOOLS[language]} on this machine")


def source(language: str, code: str) -> str:
    return {"c++": CPP, "javascript": JS}.get(language, "%s") % code if language in ("c++", "javascript") else code


@pytest.mark.parametrize("language", TOOLS)
async def test_a_program_of_each_language_is_judged_by_what_it_writes(sandbox: Sandbox, language: str) -> None:
    need(language)
    cases = (Case(stdin="1 2\n", expected="3\n"), Case(stdin="20 22\n", expected="42\n"))
    execution = await sandbox.run(Program(code=ADD[language], language=language, mode="stdin", cases=cases))
    assert execution.passed, execution
    wrong = await sandbox.run(
        Program(
            code=ADD[language], language=language.upper(), mode="stdin", cases=(cases[0], Case(stdin="1 1\n", expected="3\n"))
        )
    )
    assert (wrong.outcome, wrong.tests_run, wrong.tests_passed) == ("failed", 2, 1)


@pytest.mark.parametrize("language", ["c++", "c"])
async def test_what_does_not_compile_is_an_error_that_says_so(sandbox: Sandbox, language: str) -> None:
    need(language)
    execution = await sandbox.run(Program(code="int main( { }", language=language))
    assert (execution.outcome, execution.compiled, execution.error_type) == ("error", False, "CompileError")


async def test_a_language_that_is_not_known_is_refused_with_those_that_are(sandbox: Sandbox) -> None:
    with pytest.raises(BadRequest, match=r"'cobol'.*Python"):
        await sandbox.run(Program(code="", language="cobol"))


@pytest.mark.parametrize(("language", "what", "code"), ESCAPES, ids=lambda value: str(value)[:40])
async def test_no_language_gets_out(sandbox: Sandbox, host: Host, language: str, what: str, code: str) -> None:
    need(language)
    execution = await sandbox.run(Program(code=source(language, host.aim(code)), language=language), SHORT)
    assert execution.compiled, execution.stderr
    assert "GOT" not in execution.stdout, what
    assert "refused" in execution.stdout or "done" in execution.stdout or execution.outcome == "failed", execution
    host.check(execution)
    assert (await sandbox.run(Program(code="print(1)"))).outcome == "completed"


@pytest.mark.parametrize(("language", "what", "code", "outcomes", "limits"), ABUSES, ids=lambda value: str(value)[:40])
async def test_every_language_is_held_to_the_limits(
    sandbox: Sandbox, language: str, what: str, code: str, outcomes: tuple[str, ...], limits: tuple[str | None, ...]
) -> None:
    need(language)
    execution = await sandbox.run(Program(code=source(language, code), language=language), SHORT)
    assert execution.compiled, execution.stderr
    assert execution.outcome in outcomes, (what, execution)
    assert execution.limit in limits, (what, execution)
    assert (await sandbox.run(Program(code="print(1)"))).outcome == "completed"
