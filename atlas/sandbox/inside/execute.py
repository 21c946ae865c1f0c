"""Programs of other languages: a compiler first, if need be, then the program with this process's streams, or once per input."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

from atlas.sandbox.inside.frames import Channel

COMPILER_OUTPUT_BYTES = 16 * 1024
NOT_FOUND = 127
SHARED = {"GOCACHE": "/tmp/go-cache", "GOFLAGS": "-mod=mod", "GO111MODULE": "off", "CGO_ENABLED": "0"}


def run(payload: dict[str, Any], report: Channel, peer: Channel | None) -> int:
    """`compile` and `run` are commands; with `inputs` one frame for each, else the program takes the place of this process."""
    os.environ.update(SHARED)
    if payload["compile"] and not _compile(payload["compile"], report):
        return 0
    report.send({"compiled": True})
    if payload["inputs"] is None:
        return _become(payload["run"])
    for number, text in enumerate(payload["inputs"]):
        report.send({"case": number} | _feed(payload, text))
    report.send({"end": len(payload["inputs"])})
    return 0


def _compile(command: list[str], report: Channel) -> bool:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)  # noqa: S603
    if done.returncode == 0:
        return True
    text = done.stdout[:COMPILER_OUTPUT_BYTES].decode("utf-8", "replace")
    report.send({"compile": {"type": "CompileError", "message": text or f"the compiler ended with {done.returncode}"}})
    return False


def _become(command: list[str]) -> int:
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        return NOT_FOUND


def _feed(payload: dict[str, Any], text: str) -> dict[str, Any]:
    """One run on one input. Files hold its streams, so that nothing here can block or grow."""
    started_s = time.perf_counter()
    with _file(text.encode("utf-8", "surrogatepass")) as source, _file() as out, _file() as err:
        try:
            done = subprocess.run(  # noqa: S603 - what is run is untrusted; that is why this is a box
                payload["run"],
                stdin=source,
                stdout=out,
                stderr=err,
                timeout=payload["seconds"],
                check=False,
                start_new_session=True,
            )
            status: int | str = done.returncode
        except subprocess.TimeoutExpired:
            status = "timeout"
        except OSError as error:
            return {"exit": NOT_FOUND, "stdout": "", "stderr": str(error), "seconds": 0.0}
        seconds = time.perf_counter() - started_s
        return {
            "exit": status,
            "stdout": _head(out, payload["output_bytes"]),
            "stderr": _head(err, COMPILER_OUTPUT_BYTES),
            "seconds": seconds,
        }


def _file(content: bytes = b"") -> Any:
    descriptor = os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
    file = os.fdopen(descriptor, "r+b")
    file.write(content)
    file.seek(0)
    return file


def _head(file: Any, limit: int) -> str:
    file.seek(0)
    return file.read(limit + 1).decode("utf-8", "replace")  # type: ignore[no-any-return]
