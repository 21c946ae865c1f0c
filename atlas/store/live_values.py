"""What goes into the live counters and what comes back: values only.

Tokens are prompt and completion together; cost is in millionths of the currency; durations and times are (Unix) seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, Protocol

from atlas.types import Limits, Usage, Value


class Ask(Value, frozen=True, kw_only=True):
    """A request that wants to be let in.

    Attributes:
        request_id: unique; admitting one id twice is a Conflict.
        owner: user id; empty if there is none to count for.
        key_id: empty for a signed-in user.
        tokens: the prompt and the first slice of the completion.
        cost: of these tokens.
    """

    request_id: str
    owner: str = ""
    key_id: str = ""
    user_limits: Limits = Limits()
    key_limits: Limits = Limits()
    tokens: int = 0
    cost: int = 0


class Window(Value, frozen=True, kw_only=True):
    """The tightest limit of one kind, for headers.

    Attributes:
        remaining: what it still admits.
        reset_s: until it admits all of `limit` again, if nothing more is charged.
    """

    kind: Literal["requests", "tokens"]
    limit: int
    remaining: int
    reset_s: float


class Grant(Value, frozen=True, kw_only=True):
    """An admitted request.

    Attributes:
        at: when, by the clock that the limits and budgets are counted with.
        limits: empty where there are none.
    """

    request_id: str
    at: float
    limits: tuple[Window, ...] = ()


class Budget(Value, frozen=True, kw_only=True):
    """A budget and what is used of it, reservations of running requests included."""

    kind: Literal["tokens", "cost"]
    period: Literal["day", "month"]
    whose: Literal["user", "key"]
    limit: int
    used: int

    @property
    def remaining(self) -> int:
        return max(self.limit - self.used, 0)


class Remaining(Value, frozen=True, kw_only=True):
    """Budgets of a principal; those without a limit are left out."""

    budgets: tuple[Budget, ...] = ()


class Spent(Protocol):
    """What one key (or a signed-in user, key id empty) used on one UTC day."""

    @property
    def owner(self) -> str: ...
    @property
    def key_id(self) -> str: ...
    @property
    def day(self) -> str:
        """YYYY-MM-DD."""

    @property
    def tokens(self) -> int: ...
    @property
    def cost(self) -> int: ...


class OpenReservation(Protocol):
    """A request that runs, as the ledger knows it."""

    @property
    def request_id(self) -> str: ...
    @property
    def at(self) -> float: ...
    @property
    def owner(self) -> str: ...
    @property
    def key_id(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def cost(self) -> int: ...


class Counts(NamedTuple):
    """What the counters are rebuilt from: one consistent reading of the ledger, so that no request is in two of these.

    Attributes:
        spent: of this month at least.
        reservations: requests that still run; none when the server starts.
        recent: requests that ended within the last minute; without them a Redis that lost its data starts with empty windows.
    """

    spent: Iterable[Spent]
    reservations: Iterable[OpenReservation]
    recent: Iterable[Usage] = ()


Argument = bytes | str | int | float  # of a Redis command


class Caller(Protocol):
    """What the counters need of a connection to Redis."""

    async def call(self, *arguments: Argument) -> Any:
        """Send one command and wait for its reply, which is what the command makes it.

        Raises:
            Silent: no answer within the time; whether the command was executed is unknown.
            ScriptMissing: EVALSHA of a script that this Redis has not seen since it started.
            Refused: Redis answered with any other error.
        """

    async def close(self) -> None: ...


class Silent(Exception):
    """Redis did not answer; whether the command was executed is unknown."""


class ScriptMissing(Exception):
    """Redis has not seen this script since it started."""


class Refused(Exception):
    """Redis answered with an error."""
