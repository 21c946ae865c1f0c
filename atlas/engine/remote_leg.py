"""One request to a peer while it is answered, and the candidates it carries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from atlas.engine import remote_wire as wire
from atlas.engine.group import Group
from atlas.engine.http1 import Reply
from atlas.engine.parse import new_call_id
from atlas.engine.remote_http import Peer
from atlas.errors import AtlasError, UpstreamFailed
from atlas.types import Delta, FinishReason, Generation, Prompt, Timings, TokenLogprob, ToolCall, ToolCallDelta


class Leg:
    """Lives in the event loop. A whole answer is asked for and read in one go, anything else is streamed.

    Attributes:
        indices: the candidates of the group that come by this connection.
        task: reads the reply, once it has been started; None for a whole answer that needs none.
        is_reading: it has not ended.
    """

    def __init__(self, peer: Peer, prompt: Prompt, group: Group, indices: range, *, model: str, known_as: str) -> None:
        self.task: asyncio.Task[None] | None = None
        self._peer, self._prompt, self._group, self._model = peer, prompt, group, model
        self.indices = indices
        self._candidates = [_Candidate(index, prompt, known_as) for index in indices]
        self._reply: Reply | None = None
        self._usage: wire.Usage | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.is_reading = True
        self._is_cut = False  # the peer would go on, but some candidate may not

    async def open(self) -> None:
        """Send the request. Raises what the peer, or the way to it, has against it."""
        self._reply = await self._peer.send(wire.path(self._prompt), self._body())

    def start(self, totals: dict[str, int], deadline: float | None, on_end: Callable[[], None]) -> None:
        """Read in the background until `deadline`, in the loop's time; what it cost is added to `totals`.

        A whole answer needs no task for that where a connection is free.
        """
        self._totals, self._on_end = totals, on_end
        if deadline is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline, self._interrupt)
        if self._reply is None and wants_whole(self._prompt):
            self._reply = self._peer.send_now(wire.path(self._prompt), self._body())
            if self._reply is not None:
                self._reply.when_over(self._take_whole)
                return
        self.task = asyncio.create_task(self._run())

    def cancel(self, indices: frozenset[int]) -> None:
        """Give up some candidates; the connection is closed when none is left."""
        self._abort(indices)
        if self._group.is_done or self._is_over:
            # not before the task has run for the first time, lest it never closes its connection
            asyncio.get_running_loop().call_soon(self._interrupt)

    def give_up(self) -> None:
        """End without having started."""
        self._abort(frozenset(self.indices))
        self.close()

    def close(self) -> None:
        if self._reply is not None:
            self._reply.close()

    def _body(self) -> wire.Body:
        sampling = self._prompt.sampling[self.indices.start if len(self._prompt.sampling) > 1 else 0]
        is_streamed = not wants_whole(self._prompt)
        return wire.body(self._prompt, sampling, model=self._model, n=len(self.indices), stream=is_streamed)

    def _take_whole(self) -> None:
        """The reply is there, or will not come."""
        reply = self._reply
        if not self.is_reading or reply is None:  # it has been given up
            return
        if isinstance(reply.error, ConnectionError) and not reply.status:  # closed just as we used it again: once more
            self._reply = None
            self.task = asyncio.create_task(self._run())
            return
        try:
            self._take_chunk(wire.chunk(self._peer.whole(reply)))
            self._settle()
        except AtlasError as error:
            self._group.fail(error)
        finally:
            self._close()

    async def _run(self) -> None:
        """Every candidate is finished, or the group has failed, when this returns."""
        try:
            await self._read()
            self._settle()
            if self._reply is not None and not self._is_cut:
                await self._peer.release(self._reply)
        except AtlasError as error:
            self._group.fail(error)
        except asyncio.CancelledError:
            self._abort(frozenset(self.indices))
        finally:
            self._close()

    def _close(self) -> None:
        self.is_reading = False
        if self._timer is not None:
            self._timer.cancel()
        self.close()
        self._on_end()

    def _interrupt(self) -> None:
        if not self.is_reading:
            return
        if self.task is not None:
            self.task.cancel()
        else:
            self._abort(frozenset(self.indices))
            self._close()

    async def _read(self) -> None:
        if self._reply is None:
            await self.open()
        assert self._reply is not None
        if wants_whole(self._prompt):
            self._take_chunk(wire.chunk(await self._peer.read(self._reply)))
        else:
            await self._follow(self._reply)

    async def _follow(self, reply: Reply) -> None:
        stream = self._peer.events(reply)
        while await self._may_go_on() and (events := await stream.read()):
            for event in events:
                self._take_chunk(wire.chunk(event))
                if not await self._may_go_on():
                    return

    async def _may_go_on(self) -> bool:
        """Wait until no candidate is parked; those that never may go on end here. False if there is nothing left to read."""
        group = self._group
        if group.allowance_tokens is None:
            return True
        while not group.is_done and (parked := [c for c in self._candidates if c.may_say_more and group.is_spent(c.num_tokens)]):
            if not group.is_ended:
                await group.changed()
                continue
            self._is_cut = True
            for candidate in parked:
                self._end(candidate, "length")
        return not (self._is_cut and self._is_over)

    @property
    def _is_over(self) -> bool:
        return all(candidate.is_done for candidate in self._candidates)

    def _take_chunk(self, chunk: wire.Chunk) -> None:
        if chunk.error is not None:
            raise UpstreamFailed(f"{self._peer.name} failed while answering: {wire.error_text(chunk.error)}")
        if not self._group.is_started:
            self._group.start(cached_tokens=0)
        if chunk.usage is not None:
            self._usage = chunk.usage
        for choice in chunk.choices:
            self._take(choice)

    def _take(self, choice: wire.Choice) -> None:
        if not 0 <= choice.index < len(self._candidates):
            raise UpstreamFailed(f"{self._peer.name} sent choice {choice.index} of {len(self._candidates)}")
        candidate = self._candidates[choice.index]
        if candidate.is_done:
            return
        delta = candidate.take(choice)
        if delta is not None:
            self._group.put((delta,), ((candidate.index, candidate.num_tokens),))
        # the last one waits for the usage at the end: when it is handed on, all counts are final
        if candidate.finish_reason is not None and any(other.is_open for other in self._candidates):
            self._end(candidate, candidate.finish_reason)

    def _settle(self) -> None:
        """The reply has ended, or nothing more of it is wanted."""
        usage = self._usage or wire.Usage()
        group, totals = self._group, self._totals
        cached_tokens = (usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens) or 0
        group.prompt_tokens = usage.prompt_tokens or group.prompt_tokens  # a connection that was cut brings none
        group.cached_tokens = cached_tokens or group.cached_tokens
        counted = sum(candidate.num_tokens for candidate in self._candidates)
        totals["prompt_tokens"] += usage.prompt_tokens
        totals["cached_tokens"] += cached_tokens
        if len(self._candidates) > 1:  # with one, its Generation has the peer's count
            # llama-server tells of several candidates only what one of them took; what we have received is the least
            more = max(0, usage.completion_tokens - counted)
            group.uncounted_tokens += more
            totals["generated_tokens"] += counted + more
        else:
            totals["generated_tokens"] += usage.completion_tokens or counted
        for candidate in self._candidates:
            if candidate.is_open:
                raise UpstreamFailed(f"{self._peer.name} ended its stream before candidate {candidate.index} was finished")
            self._end(candidate, candidate.finish_reason or "abort")

    def _abort(self, indices: frozenset[int]) -> None:
        for candidate in self._candidates:
            if candidate.index in indices:
                self._end(candidate, "abort")

    def _end(self, candidate: _Candidate, reason: FinishReason) -> None:
        if candidate.is_done or self._group.is_done:
            return
        candidate.is_done = True
        usage = self._usage if len(self._candidates) == 1 else None
        self._group.put((Delta(index=candidate.index, finish_reason=reason),))
        self._group.finish(candidate.generation(reason, usage))


def wants_whole(prompt: Prompt) -> bool:
    """Whether one JSON object will do: a stream costs both sides work for every token.

    Not for several candidates, of which an object does not say how many tokens each took, and not where an allowance may have to
    hold the peer back.
    """
    allowance, bound = prompt.allowance_tokens, prompt.max_tokens
    return prompt.whole and prompt.n == 1 and (allowance is None or (bound is not None and bound <= allowance))


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
    def may_say_more(self) -> bool:
        """Of an answer that has all tokens it was asked for only the end is missing, which some peers send on its own."""
        return self.is_open and self.num_tokens != self._prompt.max_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens so far, at least: a server may put several into a chunk."""
        return len(self._logprobs) or self._num_chunks

    def take(self, choice: wire.Choice) -> Delta | None:
        """Add a chunk; returns what it brought, None if nothing."""
        gain = wire.gain(choice)
        text, reasoning = gain.content or "", gain.reasoning_content or gain.reasoning or ""
        calls = tuple(self._call(piece) for piece in gain.tool_calls) if gain.tool_calls else ()
        num_top = self._prompt.top_logprobs
        logprobs = () if num_top is None else wire.token_logprobs(choice.logprobs, num_top)
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

    def generation(self, reason: FinishReason, usage: wire.Usage | None) -> Generation:
        """As it stands; with `usage`, of this candidate alone, the peer's counts instead of ours."""
        details = usage and usage.completion_tokens_details
        total = sum(logprob.logprob for logprob in self._logprobs)
        return Generation(
            index=self.index,
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            reasoning_tokens=(details and details.reasoning_tokens) or self._num_reasoning_chunks,
            tool_calls=tuple(self._calls[index] for index in sorted(self._calls)),
            finish_reason=reason,
            matched_stop=self._matched_stop,
            model=self._model,
            num_tokens=self.num_tokens if usage is None else usage.completion_tokens,
            logprobs=tuple(self._logprobs),
            mean_logprob=total / len(self._logprobs) if self._logprobs else None,
            timings=Timings(first_token_s=self._first_token_s, total_s=time.monotonic() - self._started_s),
        )
