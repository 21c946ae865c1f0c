"""What `atlas doctor` asks of the sandbox: which tier this machine gives, and whether it keeps what a tier promises.

    python -m atlas.sandbox.examine SETTINGS

In a process of its own, like a pool; the answer is JSON on stdout.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from atlas.log import configure_logging
from atlas.sandbox.contract import ContractResult, check_contract
from atlas.sandbox.languages import available
from atlas.sandbox.tiers import choose
from atlas.settings import SandboxSettings
from atlas.types import Layer, Tier


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """What was found; without a tier no promise is tried."""

    tier: Tier | None
    reason: str
    layers: tuple[Layer, ...]
    results: tuple[ContractResult, ...]
    languages: tuple[str, ...]


async def examine(settings: SandboxSettings) -> Examination:
    """Choose a tier as a pool would, and try out its contract: some seconds."""
    choice = await choose(settings)
    results: list[ContractResult] = []
    if choice.boxes is not None:
        results = await check_contract(choice.boxes)
        await choice.boxes.close()
    return Examination(
        tier=choice.tier, reason=choice.reason, layers=choice.layers, results=tuple(results), languages=available()
    )


def main() -> None:
    configure_logging("error")
    found = asyncio.run(examine(msgspec.json.decode(sys.argv[1], type=SandboxSettings)))
    sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
