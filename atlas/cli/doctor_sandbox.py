"""`atlas doctor`, the sandbox: which isolation this machine gives, layer by layer, and whether it holds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import msgspec

from atlas.cli.doctor_check import Check
from atlas.settings import SandboxSettings
from atlas.types import Layer

TIMEOUT_S = 180.0  # the promises take five seconds on two idle cores


class Promise(msgspec.Struct):
    """Something that the chosen tier owes, as it was tried out (atlas/sandbox/contract.py)."""

    name: str
    is_ok: bool
    detail: str


class Found(msgspec.Struct):
    """What atlas/sandbox/examine.py says."""

    tier: str | None
    reason: str
    layers: list[Layer]
    results: list[Promise]
    languages: list[str]


def check_sandbox(settings: SandboxSettings) -> Iterator[Check]:
    """The tier; each layer, with the command that mends it; each promise that is broken."""
    command = [sys.executable, "-m", "atlas.sandbox.examine", msgspec.json.encode(settings).decode()]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=True)  # noqa: S603 - our own module
        found = msgspec.json.decode(done.stdout, type=Found)
    except subprocess.TimeoutExpired:
        yield Check(name="sandbox", status="fail", detail=f"it was not examined within {TIMEOUT_S:.0f} s")
        return
    except (subprocess.CalledProcessError, msgspec.DecodeError) as error:
        said = error.stderr.decode(errors="replace").strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        yield Check(name="sandbox", status="fail", detail=f"it could not be examined: {(said.splitlines() or ['no reason'])[-1]}")
        return
    yield from tell(found)


def tell(found: Found) -> Iterator[Check]:
    yield _summary(found)
    yield from (check_layer(layer) for layer in found.layers)
    broken = [one for one in found.results if not one.is_ok]
    yield from (Check(name="sandbox", status="fail", detail=f"{one.name}: {one.detail}") for one in broken)


def _summary(found: Found) -> Check:
    if found.tier is None:
        return Check(name="sandbox", status="warn", detail=f"code is refused: {found.reason}")
    kept = f"{sum(one.is_ok for one in found.results)} of {len(found.results)} promises kept"
    weak = "" if found.tier in ("native", "bwrap") else f", weaker than it could be: {found.reason}"
    detail = f"tier {found.tier}{weak}; {kept}; {', '.join(found.languages)}"
    return Check(name="sandbox", status="warn" if weak else "ok", detail=detail)


def check_layer(layer: Layer) -> Check:
    """One that is missing is worth a warning if there is something to be done about it."""
    state = "holds" if layer.active else "not in use"
    detail = "; ".join(part for part in (f"sandbox layer: {state}", layer.reason, layer.remedy) if part)
    return Check(name=layer.name, status="warn" if layer.remedy and not layer.active else "ok", detail=detail)
