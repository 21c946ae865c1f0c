"""Whether the counts in Redis can be trusted, and making them so again.

A Redis that was restarted may hold all, some or none of what was counted, so before it is used again the counts are rebuilt from
the ledger. A restart cannot be missed: it empties the script cache, scripts are loaded only once the counts have been checked,
and everything that counts is a script.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import structlog

from atlas.errors import AtlasError, LimitsUnavailable
from atlas.store.live_values import Argument, Caller, Refused, ScriptMissing, Silent

log = structlog.get_logger("atlas.live")

Truth = TypeVar("Truth")
Known = TypeVar("Known", contravariant=True)

WAIT_S = 1.0  # for a Redis that is being looked at; one that is known to be away is not waited for
RETRY_AFTER_S = 1.0  # what a client is told when Redis is away; a private one is back within about that time
PING_INTERVAL_S = 1.0
RETRY_INTERVAL_S = 0.1  # while Redis does not answer
SETTLE_TIME_S = 0.25  # after a loss, until what was let in is in the ledger (chosen; a commit takes milliseconds)
OLDEST_REDIS = (7, 0)


class Script:
    """A Lua file, with the file `shared` and the constants of this namespace in front."""

    def __init__(self, name: str, *, shared: str, constants: Mapping[str, str | int], flags: str = "") -> None:
        folder = Path(__file__).parent
        parts = [(folder / f"{part}.lua").read_text(encoding="utf-8") for part in (shared, name)]
        values = ", ".join(f"'{value}'" if isinstance(value, str) else str(value) for value in constants.values())
        self.text = "\n".join([f"#!lua{flags}", f"local {', '.join(constants)} = {values}", *parts])
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class Builder(Protocol[Known]):
    """Writes what Redis holds anew.

    Attributes:
        mark: key that holds the run id of the Redis that was rebuilt; without it the scripts refuse.
    """

    mark: str

    async def run(self, truth: Known, *, run_id: bytes) -> None:
        """Write everything, the mark last."""


class TrustedRedis(Generic[Truth]):
    """Redis while what it holds can be trusted, LimitsUnavailable otherwise. Watches it from the first use on.

    Attributes:
        trouble: why Redis cannot be used, for the operator; empty while it can, and before anybody has tried.
    """

    def __init__(
        self,
        redis: Caller,
        *,
        builder: Builder[Truth],
        scripts: Sequence[Script],
        source: Callable[[], Truth] | None,
        on_look: Callable[[], Awaitable[None]],
        complaint: str,
    ) -> None:
        self.trouble = ""
        self._complaint = complaint  # for the client, who need not know where Redis is
        self._redis = redis
        self._builder = builder
        self._scripts = scripts
        self._source = source
        self._on_look = on_look  # called whenever Redis has been found well
        self._ready = asyncio.Event()
        self._run_id = b""  # of the Redis that was rebuilt last; empty: none, or it is to be rebuilt in any case
        self._wake = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._recovering = asyncio.Lock()
        self._reading: asyncio.Future[Truth] | None = None

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    async def run(self, script: Script, *arguments: Argument) -> bytes:
        """The reply of a script.

        Raises:
            LimitsUnavailable: it was not executed.
            Silent: nobody knows whether it was.
        """
        for _ in range(2):
            await self.until_ready()
            try:
                reply: bytes = await self._redis.call("EVALSHA", script.sha, 0, *arguments)
            except ScriptMissing:
                self._doubt()
            except (Silent, Refused) as error:
                self._lose(str(error))
                if isinstance(error, Silent):
                    raise
                raise self.unavailable() from None
            else:
                if reply != b"lost":
                    return reply
                self._doubt()
        raise self.unavailable()

    async def call(self, *arguments: Argument) -> Any:
        """The reply of a command that changes nothing.

        Raises:
            LimitsUnavailable: there is none.
        """
        await self.until_ready()
        try:
            return await self._redis.call(*arguments)
        except (Silent, Refused) as error:
            self._lose(str(error))
            raise self.unavailable() from None

    async def until_ready(self) -> None:
        """Wait a little if Redis is being looked at.

        Raises:
            LimitsUnavailable: it cannot be used.
        """
        if self._ready.is_set():
            return
        self.start()
        if not self.trouble:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT_S):
                    await self._ready.wait()
        if not self._ready.is_set():
            raise self.unavailable()

    async def rebuild(self, truth: Truth) -> None:
        """Write everything anew.

        Raises:
            LimitsUnavailable: Redis does not answer, or is too old.
        """
        self.start()
        try:
            async with self._recovering:
                self._ready.clear()
                await self._rebuild(truth)
        except (Silent, Refused) as error:
            self._lose(str(error))
            raise self.unavailable() from None

    def unavailable(self) -> LimitsUnavailable:
        """What a client is told while Redis is away."""
        return LimitsUnavailable(self._complaint, retry_after_s=RETRY_AFTER_S)

    def start(self) -> None:
        """Watch Redis, if nobody does yet."""
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())

    def distrust(self) -> None:
        """Rebuild before anything else, even if Redis has lost nothing."""
        self._run_id = b""
        self._doubt()

    async def stop(self) -> None:
        """Stop watching; what is not ready stays so."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)

    async def close(self) -> None:
        """Stop watching, and disconnect."""
        await self.stop()
        await self._redis.close()

    async def _watch(self) -> None:
        while True:
            await self._look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PING_INTERVAL_S if self._ready.is_set() else RETRY_INTERVAL_S):
                    await self._wake.wait()
            self._wake.clear()

    async def _look(self) -> None:
        try:
            if self._ready.is_set():
                await self._redis.call("PING")
            else:
                await self._recover()
            await self._on_look()
        except (Silent, Refused, AtlasError) as error:
            self._lose(str(error))
        except Exception as error:  # from the source: whatever it is, nothing is admitted until it has gone
            log.exception("live.rebuild_failed")
            self._lose(f"the ledger cannot be read: {error}")

    async def _recover(self) -> None:
        async with self._recovering:
            if self._ready.is_set():
                return
            run_id = await self._identify()
            if run_id == self._run_id and await self._redis.call("EXISTS", self._builder.mark):
                await self._open(run_id)
            elif self._source is None:
                raise LimitsUnavailable("the counts have not been rebuilt from the ledger since Redis started")
            else:
                await asyncio.sleep(SETTLE_TIME_S if self._run_id else 0)
                await self._rebuild(await self._read(self._source))

    async def _read(self, source: Callable[[], Truth]) -> Truth:
        """A thread cannot be cancelled: `stop` waits for it, so that the ledger may be closed after it."""
        self._reading = asyncio.ensure_future(asyncio.to_thread(source))
        return await asyncio.shield(self._reading)

    async def _rebuild(self, truth: Truth) -> None:
        run_id = await self._identify()
        await self._builder.run(truth, run_id=run_id)
        log.info("live.rebuilt")
        await self._open(run_id)

    async def _open(self, run_id: bytes) -> None:
        await self._redis.call("SET", self._builder.mark, run_id)  # it can write, too
        for script in self._scripts:
            await self._redis.call("SCRIPT", "LOAD", script.text)
        if await self._identify() != run_id:
            raise LimitsUnavailable("Redis was restarted meanwhile")
        self._run_id = run_id
        if self.trouble:
            log.info("redis.back")
        self.trouble = ""
        self._ready.set()

    async def _identify(self) -> bytes:
        """Run id of this Redis."""
        text: bytes = await self._redis.call("INFO", "server")
        info = dict(line.split(b":", 1) for line in text.splitlines() if b":" in line)
        version = info[b"redis_version"].decode()
        if tuple(map(int, version.split(".")[:2])) < OLDEST_REDIS:
            raise LimitsUnavailable(f"Redis {version} is too old; 7.0 or later is needed")
        return info[b"run_id"]

    def _doubt(self) -> None:
        """Redis answers, but may not be the one it was."""
        self._ready.clear()
        self._wake.set()

    def _lose(self, trouble: str) -> None:
        if not self.trouble:
            log.warning("redis.lost", reason=trouble)
        self.trouble = trouble
        self._ready.clear()
