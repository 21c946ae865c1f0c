"""An engine that says what it was told to say: for tests, demonstrations and CI.

It is held to the same contract suite as the real one. What is made up is said here: log-probabilities depend on the token id
alone, embeddings hash words, a token is a word with the space before it, and a prompt is counted in bytes. A script cannot be
forced into a grammar, so JSON schemas are refused, and `tool_choice` decides only whether calls are parsed.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import re
import time
import zlib
from collections.abc import Sequence

import msgspec

from atlas.engine.group import Group
from atlas.engine.memo import PromptMemo
from atlas.engine.no_adapters import NoAdapters
from atlas.engine.parse import OutputParser
from atlas.engine.text import TextStream
from atlas.engine.validate import check_length, check_prompt
from atlas.errors import BadRequest, ContextLengthExceeded, EngineUnavailable, Unsupported
from atlas.types import Capabilities, Delta, Embeddings, EngineStats, FinishReason, Generation, Prompt, Timings, TokenLogprob

EMBEDDING_WIDTH = 64
_specials = ("<|im_start|>", "<|im_end|>")  # ids 256 and 257, after one id per byte
_piece = re.compile(r"</?\w+>|\s*[^\s<]+|\s*<|\s+")


class ScriptedEngine(NoAdapters):
    """Each candidate gets the next reply, in turn, round and round; with a seed, candidate i gets reply (seed + i).

    A reply is raw model output, so `<think>` and `<tool_call>` in it mean what they mean to a model.

    Args:
        replies: what to say.
        model: id it answers to.
        delay_s: time each token takes.
        context_tokens: bound on prompt (in bytes) plus answer (in words).
    """

    def __init__(
        self, replies: Sequence[str], *, model: str = "scripted", delay_s: float = 0.0, context_tokens: int = 4096
    ) -> None:
        if not replies:
            raise ValueError("a scripted engine needs at least one reply")
        self.prompts: list[Prompt] = []  # everything submitted, for tests to look at
        self._replies = [_piece.findall(reply) for reply in replies]
        self._vocab = _vocabulary(self._replies)
        self._ids = {piece: token for token, piece in enumerate(self._vocab)}
        self._delay_s = delay_s
        self._next_reply = 0
        self._tasks: set[asyncio.Task[FinishReason]] = set()
        self._counts = {"prompt_tokens": 0, "generated_tokens": 0}
        self._lengths: PromptMemo[int] = PromptMemo()
        self._is_closed = False
        self.capabilities = Capabilities(
            model=model,
            architecture="scripted",
            context_tokens=context_tokens,
            vocab_size=len(self._vocab),
            logprobs=True,
            tools=True,
            thinking=True,
            fill_in_middle=True,
            tokenize=True,
            embeddings=model,
            embedding_width=EMBEDDING_WIDTH,
        )

    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self._tasks), **self._counts)

    async def submit(self, prompt: Prompt) -> Group:
        self._check_open()
        prompt_tokens = await self.count_tokens(prompt)
        max_tokens = check_length(prompt_tokens, prompt, self.capabilities.context_tokens)
        self.prompts.append(prompt)
        self._counts["prompt_tokens"] += prompt_tokens
        tasks: list[asyncio.Task[FinishReason]] = []
        group = Group(
            prompt.n,
            prompt_tokens=prompt_tokens,
            cancel=lambda indices: _cancel(tasks, indices),
            allowance_tokens=prompt.allowance_tokens,
        )
        group.start(cached_tokens=0)
        for index, reply in enumerate(self._choose(prompt)):
            candidate = _Candidate(index, prompt, group, self.capabilities.model)
            tasks.append(self._start(candidate, reply, max_tokens))
        return group

    async def embed(self, inputs: Sequence[str | tuple[int, ...]]) -> Embeddings:
        self._check_open()
        texts = [text if isinstance(text, str) else await self.detokenize(text) for text in inputs]
        lengths = [len(text.encode("utf-8", "surrogatepass")) for text in texts]
        if max(lengths, default=0) > self.capabilities.context_tokens:
            raise ContextLengthExceeded(
                f"an input has {max(lengths)} tokens; the embedding model reads {self.capabilities.context_tokens}", param="input"
            )
        return Embeddings(vectors=tuple(map(_embed, texts)), num_tokens=sum(lengths), model=self.capabilities.model)

    async def count_tokens(self, prompt: Prompt) -> int:
        check_prompt(prompt, self.capabilities)
        if prompt.adapter is not None:
            raise Unsupported(f"adapter '{prompt.adapter}': a scripted engine has none", param="adapter")
        if prompt.tokens is not None:
            await self.detokenize(prompt.tokens)
            return len(prompt.tokens)
        num_tokens = self._lengths.get(prompt)
        if num_tokens is None:
            num_tokens = max(1, len(await self.tokenize(_render(prompt), special=True)))
            self._lengths.put(prompt, num_tokens, num_tokens=num_tokens)
        return num_tokens

    async def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        if not special:
            return list(text.encode("utf-8", "surrogatepass"))
        parts = re.split("(" + "|".join(map(re.escape, _specials)) + ")", text)
        return [token for part in parts for token in self._encode(part)]

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        bad = [token for token in tokens if not 0 <= token < len(self._vocab)]
        if bad:
            raise BadRequest(f"token {bad[0]} is outside the vocabulary 0..{len(self._vocab) - 1}", param="tokens")
        return [self._vocab[token] for token in tokens]

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return b"".join(await self.pieces(tokens)).decode("utf-8", "replace")

    async def close(self) -> None:
        self._is_closed = True
        tasks = list(self._tasks)
        _cancel(tasks, frozenset(range(len(tasks))))
        await asyncio.gather(*tasks, return_exceptions=True)

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineUnavailable("the engine is shut down", retry_after_s=1)

    def _encode(self, part: str) -> list[int]:
        return [256 + _specials.index(part)] if part in _specials else list(part.encode("utf-8", "surrogatepass"))

    def _choose(self, prompt: Prompt) -> list[list[str]]:
        first = prompt.sampling[0].seed
        if first is None:
            first, self._next_reply = self._next_reply, self._next_reply + prompt.n
        replies = [self._replies[(first + index) % len(self._replies)] for index in range(prompt.n)]
        return [_within_budget(reply, prompt.thinking_budget_tokens) for reply in replies]

    def _start(self, candidate: _Candidate, reply: list[str], max_tokens: int) -> asyncio.Task[FinishReason]:
        task = asyncio.create_task(self._run(candidate, reply, max_tokens))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(candidate.close)
        return task

    async def _run(self, candidate: _Candidate, reply: list[str], max_tokens: int) -> FinishReason:
        try:
            async with asyncio.timeout(candidate.prompt.deadline_s):
                for num_tokens in itertools.count():
                    await asyncio.sleep(self._delay_s)
                    if num_tokens == max_tokens or not await candidate.group.allowed(num_tokens):
                        return "length"
                    self._counts["generated_tokens"] += 1
                    if num_tokens == len(reply) or candidate.take(self._ids[reply[num_tokens].encode()], reply[num_tokens]):
                        return "stop"
        except TimeoutError:
            pass
        return "abort"


class _Candidate:
    """One answer in the making; changed only by its own task."""

    def __init__(self, index: int, prompt: Prompt, group: Group, model: str) -> None:
        self.prompt, self.group = prompt, group
        self._index, self._model = index, model
        is_chat = bool(prompt.messages)
        self._stream = TextStream(prompt.stop)
        self._parser = OutputParser(
            reasoning=is_chat, in_reasoning=False, tools=is_chat and bool(prompt.tools) and prompt.tool_choice != "none"
        )
        self._tokens: list[int] = []
        self._reasoning_tokens = 0
        self._logprobs: list[TokenLogprob] = []
        self._started_s = time.monotonic()
        self._first_token_s = 0.0

    def take(self, token: int, piece: str) -> bool:
        """Add a token; True if it completed a stop string."""
        self._first_token_s = self._first_token_s or time.monotonic() - self._started_s
        self._tokens.append(token)
        parsed = self._parser.feed(self._stream.feed(piece.encode()))
        self._reasoning_tokens += self._parser.is_reasoning
        logprob = _logprob(token, piece.encode(), self.prompt.top_logprobs or 0)
        self._logprobs.append(logprob)
        shown = () if self.prompt.top_logprobs is None else (logprob,)
        said = [Delta(index=self._index, logprobs=shown, **parsed._asdict())] if any(parsed) or shown else []
        self.group.put(said, [(self._index, len(self._tokens))])
        return self._stream.stopped

    def close(self, task: asyncio.Task[FinishReason]) -> None:
        """The task is done: hand on the last Delta and the Generation."""
        if not task.cancelled() and (error := task.exception()) is not None:
            assert isinstance(error, Exception)
            self.group.fail(error)
            return
        reason = "abort" if task.cancelled() else task.result()
        num_tokens = len(self._tokens) + (reason == "stop" and not self._stream.stopped)
        parsed = self._parser.feed(self._stream.finish())
        rest = self._parser.finish()
        if reason == "stop" and self._parser.tool_calls:
            reason = "tool_calls"
        last = Delta(
            index=self._index,
            text=parsed.text + rest.text,
            reasoning=parsed.reasoning + rest.reasoning,
            tool_calls=parsed.tool_calls + rest.tool_calls,
            finish_reason=reason,
        )
        self.group.put([last])
        self.group.finish(self._generation(reason, num_tokens))

    @property
    def _knows_mean(self) -> bool:
        return self.prompt.mean_logprob or self.prompt.top_logprobs is not None

    def _generation(self, reason: FinishReason, num_tokens: int) -> Generation:
        total = sum(logprob.logprob for logprob in self._logprobs)
        return Generation(
            index=self._index,
            text=self._parser.text,
            reasoning=self._parser.reasoning,
            reasoning_tokens=self._reasoning_tokens,
            tool_calls=self._parser.tool_calls,
            finish_reason=reason,
            matched_stop=self._stream.matched_stop,
            model=self._model,
            tokens=tuple(self._tokens),
            num_tokens=num_tokens,
            logprobs=() if self.prompt.top_logprobs is None else tuple(self._logprobs),
            mean_logprob=total / len(self._logprobs) if self._logprobs and self._knows_mean else None,
            timings=Timings(first_token_s=self._first_token_s, total_s=time.monotonic() - self._started_s),
        )


def _cancel(tasks: Sequence[asyncio.Task[FinishReason]], indices: frozenset[int]) -> None:
    for index, task in enumerate(tasks):
        if index in indices:
            task.cancel()


def _vocabulary(replies: Sequence[Sequence[str]]) -> list[bytes]:
    """Bytes, specials, then one token per distinct word of the script."""
    words = dict.fromkeys(piece.encode() for reply in replies for piece in [*reply, "</think>"])
    known = [bytes([byte]) for byte in range(256)] + [special.encode() for special in _specials]
    return known + [word for word in words if word not in known]


def _within_budget(reply: list[str], budget_tokens: int | None) -> list[str]:
    """The reply with its think block closed after `budget_tokens` tokens."""
    if budget_tokens is None or reply[:1] != ["<think>"] or "</think>" not in reply:
        return reply
    end = reply.index("</think>")
    return reply[: min(end, 1 + budget_tokens)] + reply[end:]


def _render(prompt: Prompt) -> str:
    if prompt.text is not None:
        return prompt.text + (prompt.suffix or "")
    turns = [(message.role, msgspec.json.encode(message).decode()) for message in prompt.messages]
    tools = [("tools", msgspec.json.encode(prompt.tools).decode())] if prompt.tools else []
    return "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in [*tools, *turns]) + "<|im_start|>assistant\n"


def _logprob(token: int, text: bytes, num_top: int) -> TokenLogprob:
    """Made up: the chosen token has probability 1/2 to 1/8, the alternatives (bytes) halve from there."""
    logprob = -math.log(2) * (1 + token % 3)
    others = [(byte, bytes([byte]), logprob - math.log(2) * (1 + byte)) for byte in range(max(0, num_top - 1))]
    return TokenLogprob(token=token, text=text, logprob=logprob, top=((token, text, logprob), *others)[:num_top])


def _embed(text: str) -> tuple[float, ...]:
    """Hashed bag of words of unit length: texts that share words are near each other."""
    vector = [0.0] * EMBEDDING_WIDTH
    for word in re.findall(r"\w+|\W", text.lower()):
        code = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        vector[code % EMBEDDING_WIDTH] += 1.0 if code & 0x8000_0000 else -1.0
    norm = math.sqrt(sum(value * value for value in vector))
    return tuple(value / norm for value in vector) if norm else (1.0, *vector[1:])
