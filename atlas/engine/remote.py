"""A model behind an OpenAI-compatible URL: vLLM, SGLang, llama-server, another ATLAS.

What the wire does not carry stays unknown: token ids, hidden states, the length of a prompt before it is answered (it is 0 until
the peer sends its usage, at the end), and, for several candidates in one request, how many tokens each took (counted from
log-probabilities if they were asked for, else in chunks, of which most servers send one per token).

While an answer is made its tokens are counted the same way: a lower bound. An allowance is kept by not reading on, so that TCP
holds the peer back; what fits its buffers the peer may still generate, and charge for. Candidates of one connection wait together
for the first of them that is parked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from atlas.engine import remote_wire as wire
from atlas.engine.group import Group
from atlas.engine.no_adapters import NoAdapters
from atlas.engine.remote_http import Peer
from atlas.engine.remote_leg import Leg, wants_whole
from atlas.engine.validate import check_prompt
from atlas.errors import EngineUnavailable, Unsupported, UpstreamFailed
from atlas.types import Capabilities, Embeddings, EngineStats, Prompt


class RemoteEngine(NoAdapters):
    """Passes prompts on and streams answers back. Cancelling all candidates of a request closes its connection.

    What the peer refuses is raised by `submit`; for a prompt whose answer is wanted whole, by whoever reads the group, since such
    an answer begins with its end.

    Args:
        url: base of the API, usually ending in /v1.
        model: the peer's name for the model; empty takes the first it lists.
        api_key: sent as a bearer token.
        timeout_s: longest silence of the peer while it answers.
        name: what messages call the peer; empty takes its URL.
    """

    def __init__(self, url: str, *, model: str = "", api_key: str | None = None, timeout_s: float = 600, name: str = "") -> None:
        self._peer = Peer(url, api_key=api_key, timeout_s=timeout_s, name=name)
        self._model = model  # the peer's name for it
        self._legs: set[Leg] = set()
        self._is_closed = False
        self._totals = {"prompt_tokens": 0, "cached_tokens": 0, "generated_tokens": 0}
        self.capabilities = Capabilities(
            model=model,
            architecture="remote",
            context_tokens=0,  # unknown
            logprobs=True,
            tools=True,
            json_schema=True,
            thinking=True,
            fill_in_middle=True,
            embeddings=model or "remote",
        )

    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self._legs), **self._totals)

    async def submit(self, prompt: Prompt) -> Group:
        await self.meet()
        check_prompt(prompt, self.capabilities)
        if prompt.adapter is not None:
            raise Unsupported(f"adapter '{prompt.adapter}': ask the remote server for it as a model", param="adapter")
        if prompt.json_schema is not None and not prompt.messages:
            raise Unsupported("json_schema: OpenAI's API has none for raw prompts; use a chat", param="json_schema")
        deadline = None if prompt.deadline_s is None else asyncio.get_running_loop().time() + prompt.deadline_s
        legs: list[Leg] = []

        def cancel(indices: frozenset[int]) -> None:
            for leg in legs:
                leg.cancel(indices)

        group = Group(prompt.n, prompt_tokens=0, cancel=cancel, allowance_tokens=prompt.allowance_tokens)
        legs += self._legs_of(prompt, group)
        if wants_whole(prompt) or await _opened(legs, deadline):
            self._start(legs, group, deadline)
        return group

    async def embed(self, inputs: Sequence[str | tuple[int, ...]]) -> Embeddings:
        """The peer's vectors, brought to unit length."""
        await self.meet()
        body = wire.embedding_body(inputs, model=self._model)
        reply = wire.decode(await self._peer.fetch("/embeddings", body), wire.EmbeddingReply)
        vectors = [item.embedding for item in sorted(reply.data, key=lambda item: item.index)]
        if len(vectors) != len(inputs):
            raise UpstreamFailed(f"{self._peer.name} sent {len(vectors)} embeddings for {len(inputs)} inputs")
        return Embeddings(
            vectors=tuple(map(_unit, vectors)), num_tokens=reply.usage.prompt_tokens, model=self.capabilities.embeddings or ""
        )

    async def count_tokens(self, prompt: Prompt) -> int:
        raise self._no("count tokens")

    async def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        raise self._no("tokenize")

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        raise self._no("pieces")

    async def detokenize(self, tokens: Sequence[int]) -> str:
        raise self._no("detokenize")

    async def close(self) -> None:
        self._is_closed = True
        legs = list(self._legs)
        for leg in legs:
            leg.cancel(frozenset(leg.indices))
        await asyncio.gather(*(leg.task for leg in legs if leg.task is not None))
        await self._peer.close()

    def _no(self, what: str) -> Unsupported:
        return Unsupported(f"a remote engine cannot {what}: OpenAI's API has no call for it")

    async def meet(self) -> None:
        """Learn the model's name if we were not given one, and how long its context is."""
        if self._is_closed:
            raise EngineUnavailable("the engine is shut down", retry_after_s=1)
        if self.capabilities.model:
            return
        models = wire.decode(await self._peer.fetch("/models"), wire.ModelList).data
        if not models:
            raise UpstreamFailed(f"{self._peer.name} lists no model")
        first = models[0]
        self._model = first.id
        self.capabilities = msgspec.structs.replace(
            self.capabilities,
            model=first.id,
            embeddings=first.id,
            context_tokens=first.max_model_len or first.context_length or 0,
        )

    def _legs_of(self, prompt: Prompt, group: Group) -> list[Leg]:
        """One request for all candidates, or one each if they are sampled differently."""
        is_shared = len(prompt.sampling) == 1
        ranges = [range(prompt.n)] if is_shared else [range(index, index + 1) for index in range(prompt.n)]
        return [
            Leg(self._peer, prompt, group, indices, model=self._model, known_as=self.capabilities.model) for indices in ranges
        ]

    def _start(self, legs: list[Leg], group: Group, deadline: float | None) -> None:
        def ended() -> None:
            done = [leg for leg in legs if not leg.is_reading]
            self._legs.difference_update(done)
            if len(legs) > 1 and group.is_done:  # by the failure of one connection: the others have no reader
                group.cancel()
            if len(done) == len(legs):
                legs.clear()  # the group knows them by its `cancel`: a circle that the collector would have to find

        for leg in legs:
            self._legs.add(leg)
            leg.start(self._totals, deadline, ended)


async def _opened(legs: list[Leg], deadline: float | None) -> bool:
    """Send all requests; False if the deadline passed before the peer had accepted them, and the candidates are aborted."""
    try:
        async with asyncio.timeout_at(deadline):
            await _open_all(legs)
    except TimeoutError:
        for leg in legs:
            leg.give_up()
        return False
    except BaseException as error:
        for leg in legs:
            leg.close()
        raise (error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error) from None
    return True


async def _open_all(legs: list[Leg]) -> None:
    if len(legs) == 1:  # nearly always: no task for it
        return await legs[0].open()
    async with asyncio.TaskGroup() as tasks:
        for leg in legs:
            tasks.create_task(leg.open())
    return None


def _unit(vector: Sequence[float]) -> tuple[float, ...]:
    norm = sum(value * value for value in vector) ** 0.5
    if not norm:
        raise UpstreamFailed("the remote server sent an embedding of length zero")
    return tuple(value / norm for value in vector)
