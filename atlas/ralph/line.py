"""A worker's connection to its server: calls and their answers, made again whenever it breaks.

What was asked on a connection that broke fails with `Disconnected`, which passes; what is asked while there is none waits a while
for the next. Deliveries outlive connections: whoever is back in time goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

import msgspec
import structlog

from atlas.errors import Disconnected, OperatorError
from atlas.workline import (
    VERSION,
    Call,
    CancelCandidates,
    Done,
    Drop,
    Failed,
    Frames,
    Hello,
    MainSays,
    Message,
    News,
    Ordered,
    Refused,
    Stop,
    Welcome,
    encoded,
    error_of,
    failed,
    main_said,
)

log = structlog.get_logger("atlas.worker")

FIRST_BACKOFF_S = 0.1  # doubled with each try in vain
MAX_BACKOFF_S = 5.0
HELLO_TIMEOUT_S = 10.0
PATIENCE_S = 15.0  # how long a call waits for a connection; a server that is started again is mostly back by then (chosen)

Dial = Callable[[], Awaitable[Frames]]
Answers = asyncio.Queue[Done | News | Failed]


class Line:
    """One worker's. Lives in one event loop.

    Args:
        dial: opens a connection. OSError: it is tried again; OperatorError: there will never be one.
        worker: name of this process, unique.

    Attributes:
        welcome: what the server said last.
        num_connections: how often it was connected.
    """

    def __init__(self, dial: Dial, worker: str) -> None:
        self._dial, self._worker = dial, worker
        self._ids = itertools.count(1)
        self._calls: dict[int, Answers] = {}
        self._heeding: dict[tuple[str, int], Callable[[Ordered], None]] = {}
        self._frames: Frames | None = None
        self._is_up = asyncio.Event()
        self._telling: set[asyncio.Task[None]] = set()
        self.welcome = Welcome(lease_s=0.0)
        self.num_connections = 0

    async def keep(self) -> None:
        """Stay connected. Never returns.

        Raises:
            OperatorError: the server does not want this worker.
        """
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                async with asyncio.timeout(HELLO_TIMEOUT_S):
                    frames = await self._introduced()
            except (OSError, TimeoutError, msgspec.MsgspecError) as error:
                log.info("worker.not_connected", reason=str(error) or "no answer", again_in_s=backoff_s)
            else:
                backoff_s = FIRST_BACKOFF_S
                await self._listen(frames)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    async def ask(self, make: Callable[[int], Call], *, timeout_s: float | None = None) -> Done:
        """The answer to the call that `make` makes from a number. Cancelled, the call is dropped at the other end.

        Raises:
            Disconnected: nobody knows whether it was done; no answer for `timeout_s` ends the connection.
            AtlasError: what the server says went wrong.
        """
        answers = self.follow(make)
        try:
            async with asyncio.timeout(timeout_s):
                async for answer in answers:
                    if isinstance(answer, Done):
                        return answer
        except TimeoutError:
            self.hang_up()
            raise Disconnected("the server does not answer", retry_after_s=FIRST_BACKOFF_S) from None
        finally:
            await answers.aclose()
        raise AssertionError("the last answer is Done")

    async def follow(
        self, make: Callable[[int], Call], on_number: Callable[[int], None] = lambda _: None
    ) -> AsyncGenerator[Done | News, None]:
        """All answers to a call; the last is Done. Raises as `ask`."""
        await self._connected()
        number, answers = next(self._ids), Answers()
        self._calls[number] = answers
        on_number(number)
        is_over = False
        try:
            self.tell(make(number))
            while not is_over:
                answer = await answers.get()
                is_over = not isinstance(answer, News)
                if isinstance(answer, Failed):
                    raise error_of(answer)
                yield answer
        finally:
            del self._calls[number]
            if not is_over:
                self.tell(Drop(id=number))

    def cancel(self, number: int, indices: tuple[int, ...] | None) -> None:
        """Stop candidates of the Generate of this number."""
        if number in self._calls:
            self.tell(CancelCandidates(id=number, indices=indices))

    @contextlib.contextmanager
    def heeding(self, task: str, delivery: int, on_order: Callable[[Ordered], None]) -> Iterator[None]:
        """Call `on_order` when the server says that this delivery is to stop, or is over."""
        self._heeding[task, delivery] = on_order
        try:
            yield
        finally:
            del self._heeding[task, delivery]

    def tell(self, message: Message) -> None:
        """Send, if there is a connection; one that breaks says so to all who wait."""
        if self._frames is not None:
            task = asyncio.create_task(self._write(self._frames, message))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    def hang_up(self) -> None:
        """The connection is of no use; `keep` makes another."""
        if self._frames is not None:
            self._frames.close()
            self._lost(self._frames)

    async def flush(self) -> None:
        """Wait until what was told has been sent."""
        while self._telling:
            await asyncio.gather(*self._telling, return_exceptions=True)

    async def _connected(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._is_up.wait()
        except TimeoutError:
            raise Disconnected("there is no connection to the server", retry_after_s=1.0) from None

    async def _introduced(self) -> Frames:
        """A connection on which the server has said Welcome."""
        frames = await self._dial()
        try:
            await frames.write(encoded(Hello(version=VERSION, worker=self._worker)))
            answer = await frames.read()
            said = main_said(answer) if answer is not None else None
            if isinstance(said, Refused):
                raise OperatorError(said.message)
            if not isinstance(said, Welcome):
                raise ConnectionError("the server closed the connection")
        except BaseException:
            frames.close()
            raise
        self.welcome = said
        return frames

    async def _listen(self, frames: Frames) -> None:
        """Hear answers until the connection breaks."""
        self._frames = frames
        self._is_up.set()
        self.num_connections += 1
        log.info("worker.connected", lease_s=self.welcome.lease_s)
        try:
            while self._frames is frames and (frame := await frames.read()) is not None:
                self._hear(main_said(frame))
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("worker.disconnected", reason=str(error))
        finally:
            frames.close()
            self._lost(frames)

    def _hear(self, said: MainSays) -> None:
        if isinstance(said, Stop):
            if on_order := self._heeding.get((said.task, said.delivery)):
                on_order(said.standing)
        elif isinstance(said, Done | News | Failed) and said.id in self._calls:
            self._calls[said.id].put_nowait(said)

    async def _write(self, frames: Frames, message: Message) -> None:
        try:
            await frames.write(encoded(message))
        except OSError:
            frames.close()  # whoever listens notices

    def _lost(self, frames: Frames) -> None:
        if self._frames is not frames:
            return
        self._frames = None
        self._is_up.clear()
        for number, answers in self._calls.items():
            answers.put_nowait(failed(number, Disconnected("the connection to the server broke", retry_after_s=FIRST_BACKOFF_S)))
