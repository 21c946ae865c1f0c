"""What a fresh interpreter needs of this package, compiled once by the zygote and laid into the root that its boxes share.

That root is read-only before the first box is made, so all that boxes can do with these files is read them. Finding,
reading and compiling the same modules in each box took a tenth of its start.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Callable
from types import CodeType

from atlas.sandbox.inside import fresh, runners

FUTURE = "from __future__ import annotations"
ROOM = os.path.dirname(os.path.realpath(__file__))
# What for -> modules of this package, each after those it imports.
MODULES = {
    fresh.CORE: ("frames", "program", "runners"),
    "run": ("run_code",),
    "function": ("faults", "values", "loading", "function"),
}
assert MODULES.keys() - {fresh.CORE} <= runners.RUNNERS.keys()


def prepare() -> Callable[[str], None]:
    """Compile now; what is returned lays the files into a root that is being made, when this package may be out of sight.

    A child compiles: what that takes, more than a megabyte, would otherwise be memory of each box.

    Raises:
        OSError: it could not.
    """
    made = os.memfd_create("readymade", os.MFD_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            _write(made)
        finally:  # nothing may return into the zygote
            os._exit(0)
    os.waitpid(child, 0)
    contents = os.pread(made, os.fstat(made).st_size, 0)
    os.close(made)
    if not contents:
        raise OSError("what fresh interpreters need could not be compiled")

    def lay(root: str) -> None:
        for path, content in marshal.loads(contents).items():  # noqa: S302 - made above
            with open(root + path, "wb") as file:
                file.write(content)

    return lay


def _write(descriptor: int) -> None:
    modules = {purpose: [(name, marshal.dumps(_compile(name))) for name in names] for purpose, names in MODULES.items()}
    os.write(descriptor, marshal.dumps({fresh.CODE: marshal.dumps(_compile("fresh")), fresh.MODULES: marshal.dumps(modules)}))


def _compile(name: str) -> CodeType:
    """As a flag, the future costs no import of `__future__`."""
    with open(os.path.join(ROOM, f"{name}.py"), encoding="utf-8") as file:
        text = file.read().replace(FUTURE, "", 1)
    code: CodeType = compile(text, f"{fresh.PROGRAM}/{name}.py", "exec", flags=annotations.compiler_flag, dont_inherit=True)
    return code
