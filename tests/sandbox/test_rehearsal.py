"""The rehearsal of boxes in the process that they are copies of: it changes the process in nothing but its speed."""

from __future__ import annotations

import subprocess
import sys

REHEARSE = """
import dis, os, posix, resource, sys
from pathlib import Path
from atlas.sandbox.inside import box, kernel, landlock, loading, program, rehearsal, seccomp, view

def state():
    status = Path("/proc/self/status").read_text()
    lines = [line for line in status.splitlines() if line.startswith(("Cap", "NoNewPrivs", "Seccomp", "Umask", "NSp", "Uid"))]
    limits = [resource.getrlimit(number) for number in range(16)]
    names = [{name: id(value) for name, value in vars(module).items()} for module in (os, posix, resource, kernel)]
    mounts = Path("/proc/self/mounts").read_text()
    return (
        lines, limits, names, mounts, os.listdir("/proc/self/fd"), os.getcwd(), os.getsid(0), os.nice(0), dict(os.environ),
        sys.argv, sys.path[:], "solution" in sys.modules,
    )

def is_in_final_form(function):
    plain, final = (
        [step.opname for step in dis.get_instructions(function, adaptive=adaptive)] for adaptive in (False, True)
    )
    return plain != final

setup = box.Setup(uid=1, gid=1, has_proc=True, landlock_version=7, python=sys.executable, path=[])
before = state()
rehearsal.rehearse(setup)
after = state()
for one, other in zip(before, after, strict=True):
    assert one == other, (one, other)
functions = (
    box.begin, box.isolate, box.limit, kernel.write_text, kernel.mount, kernel.drop_capabilities, landlock.restrict,
    loading.load, program.read_order, seccomp.Filter.install, view.put_files,
)
print([function.__qualname__ for function in functions if not is_in_final_form(function)])
"""


def test_a_rehearsal_leaves_the_process_as_it_was_and_its_functions_in_their_final_form() -> None:
    done = subprocess.run([sys.executable, "-c", REHEARSE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
