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
import time
from collections.abc import Sequence

import httpx
import msgspec

from atlas.engine import remote_wire as wire
from atlas.engine.group import Group
from atlas.engine.parse import new_call_id
from atlas.engine.validate import check_prompt
from atlas.errors import AtlasError, EngineUnavailable, Unsupported, UpstreamFailed
from atlas.types import (
    Capabilities,
    Delta,
    Embeddings,
    EngineStats,
    FinishReason,
    Generation,
    Prompt,
    Timings,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)

CONNECT_TIMEOUT_S = 5.0


class RemoteEngine:
    """Passes prompts on and streams answers back. Cancelling all candidates of a request closes its connection.

    Args:
        url: base of the API, usually ending in /v1.
        model: the peer's name for the model; empty takes the first it lists.
        api_key: sent as a bearer token.
        timeout_s: longest silence of the peer while it answers.
    """

    def __init__(self, url: str, *, model: str = "", api_key: str | None = None, timeout_s: float = 600) -> None:
        self._url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
            limits=httpx.Limits(max_connections=None),
        )
        self._legs: set[_Leg] = set()
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
        deadline = None if prompt.deadline_s is None else asyncio.get_running_loop().time() + prompt.deadline_s
        try:
            async with asyncio.timeout_at(deadline):
                legs = await self._open_legs(prompt)
        except TimeoutError:
            return _aborted(prompt, self.capabilities.model)

        def cancel(indices: frozenset[int]) -> None:
            for leg in legs:
                leg.cancel(indices)

        def ended(_task: asyncio.Task[None]) -> None:
            self._legs.difference_update([leg for leg in legs if leg.task is not None and leg.task.done()])
            if group.is_done:  # by the failure of one connection: the others have no reader
                group.cancel()

        group = Group(prompt.n, prompt_tokens=0, cancel=cancel, allowance_tokens=prompt.allowance_tokens)
        for leg in legs:
            self._legs.add(leg)
            leg.start(group, self._totals, deadline).add_done_callback(ended)
        return group

    async def embed(self, inputs: Sequence[str | tuple[int, ...]]) -> Embeddings:
        """The peer's vectors, brought to unit length."""
        await self.meet()
        body = wire.embedding_body(inputs, model=self.capabilities.model)
        reply = wire.decode(await self._fetch("POST", "/embeddings", body), wire.EmbeddingReply)
        vectors = [item.embedding for item in sorted(reply.data, key=lambda item: item.index)]
        if len(vectors) != len(inputs):
            raise UpstreamFailed(f"{self._url} sent {len(vectors)} embeddings for {len(inputs)} inputs")
        return Embeddings(
            vectors=tuple(map(_unit, vectors)), num_tokens=reply.usage.prompt_tokens, model=self.capabilities.embeddings or ""
        )

    async def count_tokens(self, prompt: Prompt) -> int:
        raise self._no("count tokens")

    async def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        raise self._no("tokenize")

    async def detokenize(self, tokens: Sequence[int]) -> str:
        raise self._no("detokenize")

    async def close(self) -> None:
        self._is_closed = True
        legs = list(self._legs)
        for leg in legs:
            leg.cancel(leg.indices)
        await asyncio.gather(*(leg.task for leg in legs if leg.task is not None))
        await self._http.aclose()

    def _no(self, what: str) -> Unsupported:
        return Unsupported(f"a remote engine cannot {what}: OpenAI's API has no call for it")

    async def meet(self) -> None:
        """Learn the model's name if we were not given one, and how long its context is."""
        if self._is_closed:
            raise EngineUnavailable("the engine is shut down", retry_after_s=1)
        if self.capabilities.model:
            return
        models = wire.decode(await self._fetch("GET", "/models"), wire.ModelList).data
        if not models:
            raise UpstreamFailed(f"{self._url}/models lists no model")
        first = models[0]
        self.capabilities = msgspec.structs.replace(
            self.capabilities,
            model=first.id,
            embeddings=first.id,
            context_tokens=first.max_model_len or first.context_length or 0,
        )

    async def _open_legs(self, prompt: Prompt) -> list[_Leg]:
        """One request for all candidates, or one each if they are sampled differently."""
        sizes = [(0, prompt.n)] if len(prompt.sampling) == 1 else [(index, 1) for index in range(prompt.n)]
        legs: list[_Leg] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                for first, n in sizes:
                    tasks.create_task(self._open(prompt, first, n, legs))
        except BaseException as error:
            for leg in legs:
                await leg.response.aclose()
            raise (error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error) from None
        return legs

    async def _open(self, prompt: Prompt, first: int, n: int, legs: list[_Leg]) -> None:
        sampling = prompt.sampling[first if len(prompt.sampling) > 1 else 0]
        body = wire.body(prompt, sampling, model=self.capabilities.model, n=n)
        response = await self._send("POST", wire.path(prompt), body)
        legs.append(_Leg(self._url, prompt, response, range(first, first + n), self.capabilities.model))

    async def _fetch(self, method: str, path: str, body: object = None) -> bytes:
        response = await self._send(method, path, body)
        try:
            return await response.aread()
        except httpx.HTTPError as error:
            raise _broken(self._url, error) from error
        finally:
            await response.aclose()

    async def _send(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Send a request; return once the peer has accepted it, its reply still unread."""
        content = None if body is None else msgspec.json.encode(body)
        headers = {"content-type": "application/json"} if content is not None else {}
        request = self._http.build_request(method, self._url + path, content=content, headers=headers)
        try:
            response = await self._http.send(request, stream=True)
            if response.is_success:
                return response
            reply = await response.aread()
        except httpx.HTTPError as error:
            raise _broken(self._url, error) from error
        await response.aclose()
        raise wire.failure(self._url, response.status_code, reply, retry_after=response.headers.get("retry-after"))


class _Leg:
    """One connection and the candidates it carries. Lives in the event loop."""

    def __init__(self, url: str, prompt: Prompt, response: httpx.Response, indices: range, model: str) -> None:
        self.response = response
        self.indices = frozenset(indices)
        self.task: asyncio.Task[None] | None = None
        self._is_reading = True
        self._is_cut = False  # the peer would go on, but some candidate may not
        self._url = url
        self._usage: wire.Usage | None = None
        self._candidates = [_Candidate(index, prompt, model) for index in indices]

    def start(self, group: Group, totals: dict[str, int], deadline: float | None) -> asyncio.Task[None]:
        """Read in the background until `deadline`, in the loop's time."""
        self._group, self._totals = group, totals
        self.task = asyncio.create_task(self._run(deadline))
        return self.task

    def cancel(self, indices: frozenset[int]) -> None:
        """Give up some candidates; the connection is closed when none is left."""
        self._abort(indices)
        if self._group.is_done or self._is_over:
            # not before the task has run for the first time, lest it never closes its connection
            asyncio.get_running_loop().call_soon(self._interrupt)

    async def _run(self, deadline: float | None) -> None:
        """Read the stream to its end; every candidate is finished, or the group has failed, when this returns."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._read()
            self._settle()
        except AtlasError as error:
            self._group.fail(error)
        except httpx.HTTPError as error:
            self._group.fail(_broken(self._url, error))
        except (TimeoutError, asyncio.CancelledError):
            self._abort(self.indices)
        finally:
            self._is_reading = False
            await self.response.aclose()

    def _interrupt(self) -> None:
        if self._is_reading and self.task is not None:
            self.task.cancel()

    async def _read(self) -> None:
        if not await self._may_go_on():
            return
        async for event in wire.events(self.response):
            chunk = wire.decode(event, wire.Chunk)
            if chunk.error is not None:
                raise UpstreamFailed(f"{self._url} failed while answering: {wire.error_text(chunk.error)}")
            if not self._group.is_started:
                self._group.start(cached_tokens=0)
            if chunk.usage is not None:
                self._usage = chunk.usage
            for choice in chunk.choices:
                self._take(choice)
            if not await self._may_go_on():
                return

    @property
    def _is_over(self) -> bool:
        return all(candidate.is_done for candidate in self._candidates)

    async def _may_go_on(self) -> bool:
        """Wait until no candidate is parked; those that never may go on end here. False if there is nothing left to read."""
        group = self._group
        while not group.is_done and (parked := [c for c in self._candidates if c.is_open and group.is_spent(c.num_tokens)]):
            if not group.is_ended:
                await group.changed()
                continue
            self._is_cut = True
            for candidate in parked:
                self._end(candidate, "length")
        return not (self._is_cut and self._is_over)

    def _take(self, choice: wire.Choice) -> None:
        if not 0 <= choice.index < len(self._candidates):
            raise UpstreamFailed(f"{self._url} sent choice {choice.index} of {len(self._candidates)}")
        candidate = self._candidates[choice.index]
        if candidate.is_done:
            return
        delta = candidate.take(choice)
        if delta is not None:
            self._group.put([delta], [(candidate.index, candidate.num_tokens)])
        # the last one waits for the usage at the end: when it is handed on, all counts are final
        if candidate.finish_reason is not None and any(other.is_open for other in self._candidates):
            self._end(candidate, candidate.finish_reason)

    def _settle(self) -> None:
        """The stream has ended."""
        usage = self._usage or wire.Usage()
        group, totals = self._group, self._totals
        group.prompt_tokens = usage.prompt_tokens
        group.cached_tokens = (usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens) or 0
        totals["prompt_tokens"] += group.prompt_tokens
        totals["cached_tokens"] += group.cached_tokens
        counted = sum(candidate.num_tokens for candidate in self._candidates)
        totals["generated_tokens"] += usage.completion_tokens or counted
        if usage.completion_tokens and len(self._candidates) > 1:  # with one, its Generation has the peer's count
            group.uncounted_tokens += usage.completion_tokens - counted
        for candidate in self._candidates:
            if candidate.finish_reason is None and not candidate.is_done:
                raise UpstreamFailed(f"{self._url} ended its stream before candidate {candidate.index} was finished")
            self._end(candidate, candidate.finish_reason or "abort")

    def _abort(self, indices: frozenset[int]) -> None:
        for candidate in self._candidates:
            if candidate.index in indices:
                self._end(candidate, "abort")

    def _end(self, candidate: _Candidate, reason: FinishReason) -> None:
        if candidate.is_done or self._group.is_done:
            return
        candidate.is_done = True
        num_tokens = self._usage.completion_tokens if self._usage and len(self._candidates) == 1 else None
        self._group.put([Delta(index=candidate.index, finish_reason=reason)])
        self._group.finish(candidate.generation(reason, num_tokens))


class _Candidate:
    """One answer as it comes in."""

    def __init__(self, index: int, prompt: Prompt, model: str) -> None:
        self.index = index
        self.is_done = False
        self.finish_reason: FinishReason | None = None
        self._prompt, self._model = prompt, model
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, ToolCall] = {}
        self._logprobs: list[TokenLogprob] = []
        self._num_chunks = self._num_reasoning_chunks = 0
        self._matched_stop: str | None = None
        self._started_s = time.monotonic()
        self._first_token_s = 0.0

    @property
    def is_open(self) -> bool:
        """More of it may come."""
        return self.finish_reason is None and not self.is_done

    @property
    def num_tokens(self) -> int:
        """Tokens so far, at least: a server may put several into a chunk."""
        return len(self._logprobs) or self._num_chunks

    def take(self, choice: wire.Choice) -> Delta | None:
        """Add a chunk; returns what it brought, None if nothing."""
        gain = choice.delta or wire.Gain(content=choice.text)
        text, reasoning = gain.content or "", gain.reasoning_content or gain.reasoning or ""
        calls = tuple(self._call(piece) for piece in gain.tool_calls or ())
        logprobs = () if self._prompt.top_logprobs is None else wire.token_logprobs(choice.logprobs)
        self._text.append(text)
        self._reasoning.append(reasoning)
        self._logprobs.extend(logprobs)
        if choice.finish_reason is not None:
            self._note_end(choice)
        if not (text or reasoning or calls or logprobs):
            return None
        self._num_chunks += 1
        self._num_reasoning_chunks += bool(reasoning)
        self._first_token_s = self._first_token_s or time.monotonic() - self._started_s
        return Delta(index=self.index, text=text, reasoning=reasoning, tool_calls=calls, logprobs=logprobs)

    def _note_end(self, choice: wire.Choice) -> None:
        self.finish_reason = wire.finish_reason(choice.finish_reason or "")
        self._matched_stop = choice.stop_reason if isinstance(choice.stop_reason, str) else None
        if self._prompt.top_logprobs is not None and not self._logprobs and any(self._text):
            raise UpstreamFailed("the remote server was asked for log-probabilities and sent none")

    def _call(self, piece: wire.CallPiece) -> ToolCallDelta:
        known = self._calls.get(piece.index)
        arguments = piece.function.arguments or ""
        if known is not None:
            self._calls[piece.index] = msgspec.structs.replace(known, arguments=known.arguments + arguments)
            return ToolCallDelta(index=piece.index, arguments=arguments)
        call = ToolCall(id=piece.id or new_call_id(), name=piece.function.name or "", arguments=arguments)
        self._calls[piece.index] = call
        return ToolCallDelta(index=piece.index, id=call.id, name=call.name, arguments=arguments)

    def generation(self, reason: FinishReason, num_tokens: int | None) -> Generation:
        total = sum(logprob.logprob for logprob in self._logprobs)
        return Generation(
            index=self.index,
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            reasoning_tokens=self._num_reasoning_chunks,
            tool_calls=tuple(self._calls[index] for index in sorted(self._calls)),
            finish_reason=reason,
            matched_stop=self._matched_stop,
            model=self._model,
            num_tokens=self.num_tokens if num_tokens is None else num_tokens,
            logprobs=tuple(self._logprobs),
            mean_logprob=total / len(self._logprobs) if self._logprobs else None,
            timings=Timings(first_token_s=self._first_token_s, total_s=time.monotonic() - self._started_s),
        )


def _aborted(prompt: Prompt, model: str) -> Group:
    """A group whose deadline passed before the peer had accepted it."""
    group = Group(prompt.n, prompt_tokens=0, cancel=lambda _indices: None)
    for index in range(prompt.n):
        group.put([Delta(index=index, finish_reason="abort")])
        group.finish(_Candidate(index, prompt, model).generation("abort", 0))
    return group


def _unit(vector: Sequence[float]) -> tuple[float, ...]:
    norm = sum(value * value for value in vector) ** 0.5
    if not norm:
        raise UpstreamFailed("the remote server sent an embedding of length zero")
    return tuple(value / norm for value in vector)


def _broken(url: str, error: httpx.HTTPError) -> AtlasError:
    """No connection is a matter of time; a connection that breaks or falls silent is a failure of the peer."""
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return EngineUnavailable(f"{url} cannot be reached: {reason}", retry_after_s=5)
    return UpstreamFailed(f"{url} broke off: {reason}")
