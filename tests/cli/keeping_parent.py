"""A parent that keeps a private Redis, in the folder it is told, until its stdin ends."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from atlas.cli.keeper import RedisKeeper
from atlas.log import configure_logging
from atlas.valkey import PrivateRedis, find_server


async def main() -> None:
    keeper = RedisKeeper(PrivateRedis(find_server(), Path(sys.argv[1]), memory_mb=64))
    await keeper.start()
    print(keeper.server.socket_path, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await keeper.stop()


configure_logging("info")
asyncio.run(main())
