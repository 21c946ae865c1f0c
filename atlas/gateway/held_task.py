"""A delivery that some worker holds: whose it is, who hears what becomes of it, what it costs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from atlas.errors import AtlasError, Forbidden, NotFound
from atlas.gateway.auth import ANYONE
from atlas.gateway.deps import GatewayDeps
from atlas.gateway.meter import Meter
from atlas.gateway.task_money import MeteredTask
from atlas.store import Delivery, Journal, Standing, Task
from atlas.types import Limits, Principal, RequestState

log = structlog.get_logger("atlas.workers")

LOOK_EVERY_S = 1.0  # for what was missed of a task, mostly because it happened while it was handed out (chosen)


class HeldTask:
    """From its lease, or its first call after the server was started again, to its end. Changed by the event loop only.

    Args:
        on_order: told when it is to be cancelled, or is lost.

    Attributes:
        is_heard_of: its worker has said that it has it.
        model: that answers it; what it costs is booked under this id.
        metered: what it costs.
    """

    def __init__(
        self, deps: GatewayDeps, meter: Meter, task: Task, *, model: str, on_order: Callable[[HeldTask, Standing], None]
    ) -> None:
        assert deps.journal is not None
        self.task = task
        self.delivery = Delivery(task_id=task.id, number=task.delivery)
        self.is_heard_of = False
        self.model = model
        self._journal: Journal = deps.journal
        self._on_order = on_order
        self._aborting: asyncio.Task[object] | None = None
        self.metered = MeteredTask(meter, owner_of(deps, task), task, model=model, on_abort=self._abort)
        self.watch()

    async def settle(self, state: RequestState, finish: str) -> None:
        """Stop what is done for it, and commit what it has cost. Raises as `MeteredTask.settle`."""
        await self.metered.settle(state, finish)

    def watch(self) -> None:
        """Hear of its cancellation and its loss, whichever way they come about."""
        self._watching = asyncio.create_task(self._watch())

    def unwatch(self) -> None:
        """Nothing will be heard of it any more."""
        self._watching.cancel()

    async def _watch(self) -> None:
        while True:
            try:
                standing = await self._journal.until_stopped(self.delivery, look_after_s=LOOK_EVERY_S)
                self._on_order(self, standing)
                if standing == "lost":
                    return
            except AtlasError as error:  # the ledger is away, and says so itself
                log.info("task.not_watched", task_id=self.task.id, reason=error.message)

    def _abort(self, actor: str) -> None:
        async def cancel() -> None:
            with contextlib.suppress(AtlasError):  # whoever wanted it can try again
                await self._journal.cancel(self.task.id, reason=f"ended by {actor}")

        self._aborting = asyncio.create_task(cancel())


def owner_of(deps: GatewayDeps, task: Task) -> Principal:
    """Who pays for a task. A key that has been taken back since limits it as it did.

    Raises:
        NotFound: the account is gone.
        Forbidden: it is disabled.
    """
    if deps.auth.mode == "off":
        return ANYONE
    store = deps.store
    user = store.accounts.get(task.owner)
    if user.disabled_at is not None:
        raise Forbidden("the account of the task's owner is disabled")
    name, limits = "", Limits()
    with contextlib.suppress(NotFound):  # a person's session, or the key in the environment
        key = store.keys.get(task.key_id)
        name, limits = key.name, key.limits
    return Principal(
        owner=user.id,
        username=user.username,
        role=user.role,
        key_id=task.key_id,
        name=name,
        key_limits=limits,
        user_limits=store.accounts.effective_limits(user),
    )
