"""The first program of a fresh interpreter in a box: find our package, read the order, perform it."""

import json
import os
import sys
import types

BEGUN = {"begun": True}


def stand_in(*packages: tuple[str, str]) -> None:
    """Make packages importable whose own `__init__` must not run here: name and directory of each."""
    for name, directory in packages:
        module = types.ModuleType(name)
        module.__path__ = [directory]
        sys.modules[name] = module


def main() -> None:
    arguments = json.loads(sys.argv[1])
    payload, report, *peer = arguments["descriptors"]
    sys.path[:] = arguments["path"]
    room = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    stand_in(("atlas", os.path.dirname(room)), ("atlas.sandbox", room))
    from atlas.sandbox.inside import frames, program, runners

    order = program.read_order(payload)
    os.close(payload)
    run = runners.runners_of(order["profile"])[order["runner"]]
    frames.write_frame(report, BEGUN)  # from here on whatever happens is the program's doing
    program.perform(run, order["payload"], report, peer)


if __name__ == "__main__":
    main()
