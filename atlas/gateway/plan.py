"""Who may answer a request, in order: the model asked for, and what stands in for it where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import quote

from atlas.engine import Engine, Upstream
from atlas.errors import (
    AtlasError,
    EngineFailed,
    EngineOverloaded,
    EngineUnavailable,
    ModelNotLoaded,
    RemoteNotAllowed,
    UpstreamFailed,
)

# What another model may mend. All else is wrong with the request, or with what its owner may use, and would be so again.
PASSES_ON = (EngineFailed, EngineOverloaded, EngineUnavailable, ModelNotLoaded, UpstreamFailed)


class Link:
    """One who may answer. Changed by the event loop only.

    Attributes:
        adapter: of the engine's model; None is the model as it is.
        upstream: the server that the engine stands for; None for a model of this process.
        error: why it does not answer; None while it may.
    """

    def __init__(
        self,
        model: str,
        engine: Engine | None = None,
        *,
        adapter: str | None = None,
        upstream: Upstream | None = None,
        error: AtlasError | None = None,
    ) -> None:
        self.model, self.engine, self.adapter, self.upstream, self.error = model, engine, adapter, upstream, error

    @property
    def is_open(self) -> bool:
        return self.engine is not None and self.error is None


class Plan:
    """Of one request.

    Attributes:
        asked: the model as the client has named it.
        is_begun: somebody's answer has begun, and nobody else is asked any more.
    """

    def __init__(self, asked: str, links: Sequence[Link]) -> None:
        self.asked, self.links = asked, tuple(links)
        self.is_begun = False

    def open(self) -> list[Link]:
        return [link for link in self.links if link.is_open]

    def failure(self) -> AtlasError:
        """Nobody answers: what stood against the first, in its own words, with what became of the others."""
        errors = [(link.model, link.error) for link in self.links if link.error is not None]
        (_, first), *others = errors
        reasons = "".join(f"; {model}: {error.message}" for model, error in others)
        waits = [error.retry_after_s for _, error in errors if error.retry_after_s is not None]
        return type(first)(first.message + reasons, param=first.param, retry_after_s=min(waits, default=None))

    def broken_off(self, error: AtlasError) -> AtlasError:
        """The error of an answer that had begun."""
        if not self.is_begun or not isinstance(error, PASSES_ON):
            return error
        message = f"{error.message}; its answer had begun, so no other model was asked"
        return type(error)(message, param=error.param, retry_after_s=error.retry_after_s)

    def fell_through(self, answering: str) -> str:
        """Those before the one that answers and why they do not, as a header has it; empty if there are none."""
        parts = []
        for link in self.links:
            if link.model == answering and link.is_open:
                break
            if link.error is not None:
                parts.append(f"{in_header(link.model)}={link.error.code}")
        return ", ".join(parts)


def not_allowed(upstream: Upstream) -> RemoteNotAllowed:
    return RemoteNotAllowed(
        f"upstream '{upstream.name}' is another machine, and this key's requests may not leave this one; "
        "allow it on the page Keys, or make a key with `atlas keys create --allow-remote`",
        param="model",
    )


@lru_cache(maxsize=256)
def in_header(model: str) -> str:
    """An id as a header can carry it: ids of other servers may hold anything."""
    return quote(model, safe="/:._-+@~")
