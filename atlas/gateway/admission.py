"""The queue in front of the engine: bounded, p0 before p1 before p2, fair between owners, its positions visible.

Fairness is start-time fair queueing (Goyal, Vin, Cheng, 1996): a request's tag is the virtual time at which its owner's earlier
requests will have had their share, and the smallest tag goes first. An owner with twenty waiting requests, or one for twenty
candidates, therefore does not delay another owner's single one. A request that has waited `AGEING_S` counts as one priority
higher, so lower priorities cannot starve. The first in line is never overtaken by a smaller one that would fit: many candidates
at once must get their turn as well.

Not covered: fairness between the keys of one owner (they share its place in line), and time on the engine (a slot is a slot).
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable

from atlas.errors import EngineOverloaded

PRIORITIES = (0, 1, 2)
AGEING_S = 15.0  # waiting time worth one priority; chosen, unmeasured
RANKING_AGE_S = 0.25  # positions are worked out anew at most this often
WAIT_SHARE = 0.2  # weight of the newest wait in the running mean that Retry-After is made of
PRUNE_AT = 64  # owners remembered before those with nothing to remember are dropped
MIN_RETRY_S, MAX_RETRY_S = 1.0, 60.0


class Ticket:
    """A request's place: waiting, admitted or gone. Changed only by the queue that issued it.

    Attributes:
        cost: slots it takes while it runs, one per candidate.
        entered_s: when it came, by the queue's clock.
        waited_s: how long it waited; known once it is admitted.
    """

    __slots__ = ("admitted", "cost", "entered_s", "held", "level", "number", "owner", "priority", "tag", "timer", "waited_s")

    def __init__(self, owner: str, *, priority: int, cost: int, entered_s: float) -> None:
        self.owner = owner
        self.priority = self.level = priority
        self.cost = cost
        self.entered_s = entered_s
        self.waited_s = 0.0
        self.tag = 0.0
        self.number = 0
        self.held = 0  # slots it holds now
        self.admitted: asyncio.Future[bool] | None = None  # None: it never had to wait; False: it left
        self.timer: asyncio.TimerHandle | None = None

    @property
    def is_waiting(self) -> bool:
        return self.admitted is not None and not self.admitted.done()


class FairLine:
    """The order of those who wait; knows no slots and no clock.

    Tickets are in one heap per level, smallest tag first. A ticket that has left, or has aged into another level, is dropped when
    it comes to the top of its old heap.
    """

    def __init__(self) -> None:
        self._heaps: tuple[list[tuple[float, int, Ticket]], ...] = tuple([] for _ in PRIORITIES)
        self._waiting: dict[int, Ticket] = {}  # by number, oldest first
        self._finish: dict[str, float] = {}  # per owner: virtual time at which its share of what it asked for is over
        self._now = 0.0  # virtual time: the tag of the last one served
        self._issued = 0
        self._prune_at = PRUNE_AT

    def __len__(self) -> int:
        return len(self._waiting)

    def tag(self, ticket: Ticket) -> None:
        """Give a newcomer its number and its tag; its owner's next one comes later by its cost."""
        self._issued += 1
        ticket.number = self._issued
        ticket.tag = max(self._now, self._finish.get(ticket.owner, 0.0))
        self._finish[ticket.owner] = ticket.tag + ticket.cost

    def push(self, ticket: Ticket) -> None:
        self._waiting[ticket.number] = ticket
        heapq.heappush(self._heaps[ticket.level], (ticket.tag, ticket.number, ticket))

    def discard(self, ticket: Ticket) -> None:
        """It does not want to wait any longer; the share it never had is its owner's again."""
        if self._waiting.pop(ticket.number, None) is not None and ticket.owner in self._finish:
            self._finish[ticket.owner] -= ticket.cost

    def first(self) -> Ticket | None:
        for level, heap in enumerate(self._heaps):
            while heap and not self._is_current(heap[0][2], level):
                heapq.heappop(heap)
            if heap:
                return heap[0][2]
        return None

    def take(self, ticket: Ticket) -> None:
        """`ticket` is served."""
        del self._waiting[ticket.number]
        self.serve(ticket)

    def serve(self, ticket: Ticket) -> None:
        """Virtual time passes; owners who have had no more than their share by now need no mark."""
        self._now = max(self._now, ticket.tag)
        if len(self._finish) > self._prune_at:
            self._finish = {owner: finish for owner, finish in self._finish.items() if finish > self._now}
            self._prune_at = max(PRUNE_AT, 2 * len(self._finish))

    def reset(self) -> None:
        """Nobody waits and nobody runs: what was used in the past gives nobody a claim."""
        self._finish.clear()
        self._now = 0.0

    def age(self, now_s: float) -> None:
        """Move up those who have waited long enough."""
        for ticket in self._waiting.values():
            if now_s - ticket.entered_s < AGEING_S:
                break  # the rest came later
            level = max(0, ticket.priority - int((now_s - ticket.entered_s) / AGEING_S))
            if level < ticket.level:
                ticket.level = level
                heapq.heappush(self._heaps[level], (ticket.tag, ticket.number, ticket))

    def ranks(self) -> dict[int, int]:
        """Position by number; 1 is next."""
        order = sorted(self._waiting.values(), key=lambda ticket: (ticket.level, ticket.tag, ticket.number))
        return {ticket.number: rank for rank, ticket in enumerate(order, start=1)}

    def counts(self) -> tuple[int, ...]:
        """How many wait, by the priority they came with."""
        counts = [0] * len(PRIORITIES)
        for ticket in self._waiting.values():
            counts[ticket.priority] += 1
        return tuple(counts)

    def _is_current(self, ticket: Ticket, level: int) -> bool:
        return ticket.number in self._waiting and ticket.level == level


class AdmissionQueue:
    """Slots of the engine and those who wait for one. Lives in the event loop; starts no task.

    Args:
        capacity: slots; a request for more candidates than there are takes all of them.
        max_waiting: how many requests may wait.
        timeout_s: how long each may.
    """

    def __init__(self, capacity: int, *, max_waiting: int, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity = capacity
        self.used = 0  # slots
        self.num_running = 0  # requests
        self._max_waiting = max_waiting
        self._timeout_s = timeout_s
        self._clock = clock
        self._line = FairLine()
        self._usual_wait_s = MIN_RETRY_S
        self._ranks: dict[int, int] = {}
        self._ranked_s = -RANKING_AGE_S

    def __len__(self) -> int:
        return len(self._line)

    def check_room(self) -> None:
        """Raises EngineOverloaded when nobody else may wait."""
        if len(self._line) >= self._max_waiting:
            raise EngineOverloaded(f"{len(self._line)} requests are waiting already", retry_after_s=self._retry_after_s())

    def enter(self, owner: str, *, priority: int, cost: int) -> Ticket:
        """A ticket, admitted at once if a slot is free and nobody waits; `leave` it in any case.

        Raises:
            EngineOverloaded: too many wait already.
        """
        ticket = Ticket(owner, priority=priority, cost=cost, entered_s=self._clock())
        if not self._line and self._fits(ticket):
            self._line.tag(ticket)
            self._line.serve(ticket)
            self._hold(ticket)
            return ticket
        self.check_room()
        self._line.tag(ticket)
        self._line.push(ticket)
        loop = asyncio.get_running_loop()
        ticket.admitted = loop.create_future()
        ticket.timer = loop.call_later(self._timeout_s, self._expire, ticket)
        return ticket

    async def wait(self, ticket: Ticket) -> bool:
        """True once it is admitted, False if it left the line.

        Raises:
            EngineOverloaded: it has waited for as long as requests may.
        """
        return True if ticket.admitted is None else await asyncio.shield(ticket.admitted)

    def position(self, ticket: Ticket) -> int:
        """1 is next, 0 is not waiting; up to `RANKING_AGE_S` old."""
        if not ticket.is_waiting:
            return 0
        now_s = self._clock()
        if now_s - self._ranked_s >= RANKING_AGE_S or ticket.number not in self._ranks:
            self._dispatch()  # who has aged into first place may need less than those before
            self._ranks, self._ranked_s = self._line.ranks(), now_s
        return self._ranks.get(ticket.number, 0)

    def leave(self, ticket: Ticket) -> None:
        """Give up its place in line, or all the slots it holds. Idempotent."""
        if ticket.is_waiting and ticket.admitted is not None:
            self._line.discard(ticket)
            ticket.admitted.set_result(False)
            self._stop_timer(ticket)
        self.shrink(ticket, 0)

    def shrink(self, ticket: Ticket, slots: int) -> None:
        """It needs no more than so many slots from now on."""
        freed = max(0, ticket.held - slots)
        ticket.held -= freed
        self.used -= freed
        self.num_running -= bool(freed and not ticket.held)
        self._dispatch()
        if not self.used and not self._line:
            self._line.reset()

    def waiting(self) -> tuple[int, ...]:
        """Requests that wait, by priority."""
        return self._line.counts()

    def _dispatch(self) -> None:
        """Admit who comes next, for as long as there is room."""
        if not self._line:
            return
        now_s = self._clock()
        self._line.age(now_s)
        while (ticket := self._line.first()) is not None and self._fits(ticket):
            self._line.take(ticket)
            self._hold(ticket)
            ticket.waited_s = now_s - ticket.entered_s
            self._usual_wait_s += WAIT_SHARE * (ticket.waited_s - self._usual_wait_s)
            assert ticket.admitted is not None  # whoever waits has one
            ticket.admitted.set_result(True)
            self._stop_timer(ticket)

    def _fits(self, ticket: Ticket) -> bool:
        return self.used + min(ticket.cost, self.capacity) <= self.capacity

    def _hold(self, ticket: Ticket) -> None:
        ticket.held = min(ticket.cost, self.capacity)
        self.used += ticket.held
        self.num_running += 1

    def _expire(self, ticket: Ticket) -> None:
        assert ticket.admitted is not None  # it has a timer because it waits
        self._line.discard(ticket)
        message = f"no free place within {self._timeout_s:g} s (queue.timeout_s)"
        ticket.admitted.set_exception(EngineOverloaded(message, retry_after_s=self._retry_after_s()))
        ticket.admitted.exception()  # whoever waits gets it; if nobody does, that is no fault
        self._dispatch()

    def _stop_timer(self, ticket: Ticket) -> None:
        if ticket.timer is not None:
            ticket.timer.cancel()

    def _retry_after_s(self) -> float:
        """As long as those admitted lately had to wait."""
        return min(max(self._usual_wait_s, MIN_RETRY_S), MAX_RETRY_S)
