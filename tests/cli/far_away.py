"""A network between a worker and its server that can be made to fail: it may swallow everything, or cut all connections."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class Proxy:
    """Passes TCP on to a port of this machine, in a thread of its own."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._is_open = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        started = threading.Event()

        async def serve() -> None:
            self._is_open.set()
            self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
            started.set()

        def run() -> None:
            self._loop.create_task(serve())
            self._loop.run_forever()

        self._thread = threading.Thread(target=run)
        self._thread.start()
        started.wait(20)

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def swallow(self) -> None:
        """From now on nothing arrives, and nobody is told."""
        self._loop.call_soon_threadsafe(self._is_open.clear)

    def let_through(self) -> None:
        self._loop.call_soon_threadsafe(self._is_open.set)

    def cut(self) -> None:
        """End all connections; new ones can be made."""

        def close() -> None:
            for writer in tuple(self._writers):
                writer.transport.abort()

        self._loop.call_soon_threadsafe(close)

    def close(self) -> None:
        async def stop() -> None:
            assert self._server is not None
            self._server.close()
            for task in asyncio.all_tasks():
                if task is not asyncio.current_task():
                    task.cancel()
            await asyncio.sleep(0.1)
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(stop(), self._loop)
        self._thread.join(20)
        self._loop.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            self._writers |= {writer, other_writer}
            try:
                await asyncio.gather(self._pump(reader, other_writer), self._pump(other_reader, writer))
            finally:
                self._writers -= {writer, other_writer}
                writer.transport.abort()
                other_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self._is_open.wait()
            writer.write(data)
            await writer.drain()
        writer.close()
