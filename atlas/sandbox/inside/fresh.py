"""The first program of a fresh interpreter in a box: find our package, read the order, perform it.

    python -I -S fresh.py DESCRIPTORS PATH      payload, report[, receiving, sending], by commas; sys.path, by colons

It imports next to nothing; see frames.py.
"""

import posix
import sys

BEGUN = b'{"begun":true}'
WAITING, GO = b"?", b"!"  # what a box that is prepared ahead says, and is told


def stand_in(*packages: tuple[str, str]) -> None:
    """Make packages importable whose own `__init__` must not run here: name and directory of each."""
    for name, directory in packages:
        module = type(sys)(name)
        module.__path__ = [directory]
        sys.modules[name] = module


def parent(path: str) -> str:
    return path.rpartition("/")[0]


def main() -> None:
    payload, report, *peer = map(int, sys.argv[1].split(","))
    sys.path[:] = sys.argv[2].split(":")
    room = parent(parent(__file__))
    stand_in(("atlas", parent(room)), ("atlas.sandbox", room))
    from atlas.sandbox.inside import frames, program, runners

    order = program.read_order(payload)
    run = runners.find(order["runner"])
    if order["waits"]:  # a box prepared ahead: what it is for comes when the pool says so
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
