"""The first program of a fresh interpreter in a box: find our package, read the order, perform it.

    python -I -S -B -c BOOT DESCRIPTORS PATH      payload, report[, receiving, sending], by commas; sys.path, by colons

It imports next to nothing (see frames.py), and of our package what lies compiled in the box's root (readymade.py).
"""

import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # see frames.py
    from types import CodeType

BEGUN = b'{"begun":true}'
WAITING, GO = b"?", b"!"  # what a box that is prepared ahead says, and is told
PROGRAM = "/run/atlas/sandbox/inside"  # this package, as boxes see it
CODE, MODULES = "/run/atlas/fresh", "/run/atlas/modules"  # this file, and what it needs, compiled
CORE = ""  # modules that every order needs; others go by the runner's name
BOOT = f"import marshal, posix\nd = posix.open('{CODE}', 0)\nexec(marshal.loads(posix.read(d, posix.fstat(d).st_size)))"


def stand_in(*packages: tuple[str, str]) -> None:
    """Make packages importable whose own `__init__` must not run here: name and directory of each."""
    for name, directory in packages:
        module = type(sys)(name)
        module.__path__ = [directory]
        sys.modules[name] = module


def parent(path: str) -> str:
    return path.rpartition("/")[0]


def read_modules() -> dict[str, list[tuple[str, bytes]]]:
    """Name and code of modules of our package, in the order of their imports, by what they are for."""
    descriptor = posix.open(MODULES, posix.O_RDONLY)
    content = posix.read(descriptor, posix.fstat(descriptor).st_size)
    posix.close(descriptor)
    found: dict[str, list[tuple[str, bytes]]] = marshal.loads(content)  # noqa: S302 - laid there by the zygote, in a root that nobody writes to
    return found


def load(modules: list[tuple[str, bytes]]) -> None:
    """As importing them would."""
    for name, content in modules:
        full = f"atlas.sandbox.inside.{name}"
        module = sys.modules[full] = type(sys)(full)
        module.__file__ = f"{PROGRAM}/{name}.py"
        setattr(sys.modules["atlas.sandbox.inside"], name, module)
        code: CodeType = marshal.loads(content)  # noqa: S302 - of the same file
        exec(code, module.__dict__)


def main() -> None:
    payload, report, *peer = map(int, sys.argv[1].split(","))
    sys.path[:] = sys.argv[2].split(":")
    posix.close(d)  # type: ignore[name-defined]  # noqa: F821 - of BOOT, which this is executed in
    room = parent(PROGRAM)
    stand_in(("atlas", parent(room)), ("atlas.sandbox", room), ("atlas.sandbox.inside", PROGRAM))
    modules = read_modules()
    load(modules[CORE])
    from atlas.sandbox.inside import frames, program, runners

    order = program.read_order(payload)
    load(modules.get(order["runner"], []))
    run = runners.find(order["runner"])
    if order["waits"]:  # a box prepared ahead: what it is for comes when the pool says so
        compile("", "", "exec")  # makes all classes of syntax trees, once: a millisecond
        posix.write(report, WAITING)
        if posix.read(report, 1) != GO:
            return
        order = program.read_order(payload)
        program.put_files(order["files"])
    posix.close(payload)
    frames.write_body(report, BEGUN)  # from here on whatever happens is the program's doing
    program.perform(run, order["payload"], report, peer)


if __name__ == "__main__":
    main()
