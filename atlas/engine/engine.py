"""The in-process engine: async on one side, the engine thread on the other. Prompts are checked and tokenised here.

Rendering and tokenising run on a small thread pool, so that a megabyte of prompt does not stop the event loop; the tokens are
remembered for a while, since a server counts them before it submits the prompt.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import structlog

from atlas.engine.adapters import Adapter, Adapters
from atlas.engine.chat_format import ChatFormat
from atlas.engine.context import Opened, absolute, flash_attention, has_gpu_layers, host_tokens, open_context
from atlas.engine.core import HAND_OVER_CPU_S, HAND_OVER_GPU_S, Allow, Cancel, Core
from atlas.engine.embedder import Embedder, open_embedder
from atlas.engine.grammar import Grammars, Matcher
from atlas.engine.group import Group
from atlas.engine.memo import PromptMemo
from atlas.engine.prefix_file import PrefixFile
from atlas.engine.runner import Model, Tokens
from atlas.engine.sampler import Recommended
from atlas.engine.sequence import Job
from atlas.engine.validate import check_length, check_prompt
from atlas.errors import AtlasError, BadRequest, EngineOverloaded, EngineUnavailable, ModelFileError, Unsupported
from atlas.settings import EngineSettings
from atlas.types import AdapterInfo, Capabilities, Embeddings, EngineStats, Prompt

MAX_CANDIDATES = 128

T = TypeVar("T")
log = structlog.get_logger("atlas.engine")


class Encoded(NamedTuple):
    """A prompt as the model reads it, and whether it ends inside an open think block."""

    tokens: Tokens
    in_reasoning: bool


async def load_llama(path: Path, *, model_id: str, settings: EngineSettings) -> LlamaEngine:
    """See `load_engine`."""
    loop = asyncio.get_running_loop()
    opened = await loop.run_in_executor(None, open_context, path, settings)
    try:
        embedder = open_embedder(settings.embedder, opened.model, is_offline=settings.offline)
    except ModelFileError:
        opened.close()
        raise
    engine = LlamaEngine(opened, model_id=model_id, settings=settings, embedder=embedder, loop=loop)
    try:
        await engine.recall()
        await _load_adapters(engine, settings)
    except BaseException:
        await engine.close()
        raise
    return engine


async def _load_adapters(engine: LlamaEngine, settings: EngineSettings) -> None:
    for name, adapter in settings.adapters.items():
        try:
            await engine.load_adapter(name, absolute(adapter.path), scale=adapter.scale)
        except AtlasError as error:
            raise ModelFileError(f"engine.adapters: '{name}': {error.message}; or take it out of the settings") from None


class LlamaEngine:
    """A llama.cpp model in this process; satisfies `Engine`."""

    is_asleep = False

    def __init__(
        self,
        opened: Opened,
        *,
        model_id: str,
        settings: EngineSettings,
        embedder: Embedder | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._opened = opened
        model, runner, costs, speculator = opened
        self._model, self._settings, self._embedder = model, settings, embedder
        self._vocab = model.vocab
        self._format = ChatFormat(
            model.chat_template,
            bos=self._text_of(model.vocab.bos),
            eos=self._text_of(model.vocab.eos),
            control=model.vocab.control_texts(),
        )
        self._recommended = recommended_sampling(model)
        self._context_tokens = min(runner.context_tokens, model.train_context_tokens)
        self._memo: PromptMemo[Encoded] = PromptMemo()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="prompt")
        self._grammar_lock = threading.Lock()
        self._outstanding = 0
        self._is_closed = False
        self._prefixes: PrefixFile | None = None  # until they have been recalled
        self.capabilities = self._describe(model_id)
        self._core = Core(
            model,
            runner,
            model_id=model_id,
            max_running=settings.max_sequences,
            max_cached=settings.cached_sequences,
            chunk_tokens=settings.prefill_chunk_tokens,
            prefill_step_s=settings.prefill_step_ms / 1000,
            splits_steps=not has_gpu_layers(settings),
            hand_over_s=HAND_OVER_GPU_S if has_gpu_layers(settings) else HAND_OVER_CPU_S,
            costs=costs,
            speculator=speculator,
            host_tokens=host_tokens(model, runner, settings),
            loop=loop,
        )
        self._adapters = Adapters(model, model_id, self._core)

    def stats(self) -> EngineStats:
        return self._core.stats()

    async def submit(self, prompt: Prompt) -> Group:
        self._check(prompt)
        self._reserve(prompt.n)
        adapter = self._pinned(prompt.adapter)
        try:
            encoded = await self._encode(prompt)
            room = check_length(len(encoded.tokens), prompt, self._context_tokens)
            matchers = await self._in_pool(lambda: self._matchers(prompt)) if _is_bound(prompt) else ()
        except BaseException:
            self._release(prompt.n, adapter)
            raise
        job = self._job(prompt, encoded, room, matchers, adapter)
        self._core.put(job)
        return job.group

    def adapters(self) -> tuple[AdapterInfo, ...]:
        return self._adapters.infos()

    async def load_adapter(self, name: str, path: Path, *, scale: float = 1.0) -> AdapterInfo:
        self._check_open()
        return await self._adapters.load(name, path, scale=scale)

    async def drop_adapter(self, name: str) -> None:
        self._check_open()
        await self._adapters.drop(name)

    async def embed(self, inputs: Sequence[str | tuple[int, ...]]) -> Embeddings:
        if self._embedder is None:
            raise Unsupported("this server runs without an embedding model (engine.embedder = 'off')", param="model")
        return await self._embedder.embed(inputs)

    async def count_tokens(self, prompt: Prompt) -> int:
        self._check(prompt)
        return len((await self._encode(prompt)).tokens)

    async def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        return await self._in_pool(lambda: self._vocab.tokenize(text, special=special))

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        self._check_ids(tokens)
        return [self._vocab.raw_piece(token, special=True) for token in tokens]

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return b"".join(await self.pieces(tokens)).decode("utf-8", "replace")

    async def recall(self) -> None:
        """Have the prefixes that were known when an engine of this model was closed last, and keep them again at the end."""
        if self._settings.prefix_folder:
            self._prefixes = await asyncio.to_thread(self._prefix_file)
            await self._core.remember(await asyncio.to_thread(self._prefixes.read))

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._prefixes is not None:
            await self._keep(self._prefixes)
        await self._core.stop()
        await self._adapters.close()
        if self._embedder is not None:
            await self._embedder.close()
        self._pool.shutdown(cancel_futures=True)
        if "_built_grammars" in vars(self):
            self._built_grammars.close()
        await asyncio.sleep(0)  # lets the thread's last hand-over run
        self._opened.close()

    async def _keep(self, file: PrefixFile) -> None:
        try:
            entries = await self._core.prefixes()
        except AtlasError as error:  # they can be computed again
            log.warning("prefixes.not_kept", reason=error.message)
            return
        await asyncio.to_thread(file.write, entries)

    def _prefix_file(self) -> PrefixFile:
        settings = self._settings
        attention = f"flash attention {flash_attention(settings)}, GPU {has_gpu_layers(settings)}"
        return PrefixFile(absolute(settings.prefix_folder), self._model.path, attention=attention)

    # -- checks, before anything is computed --

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineUnavailable("the engine is shutting down", retry_after_s=5)

    def _check(self, prompt: Prompt) -> None:
        self._check_open()
        check_prompt(prompt, self.capabilities)
        if prompt.adapter is not None:
            self._adapters.find(prompt.adapter)
        for sampling in prompt.sampling:
            self._check_ids(sampling.logit_bias, param="logit_bias")

    def _check_ids(self, tokens: Sequence[int] | dict[int, float], *, param: str | None = None) -> None:
        for token in tokens:
            if not 0 <= token < self._vocab.size:
                raise BadRequest(f"token id {token} is outside the vocabulary of {self._vocab.size}", param=param)

    def _reserve(self, num_candidates: int) -> None:
        """A place in the bounded queue; given back when the group is done."""
        limit = self._settings.max_waiting + self._settings.max_sequences
        if self._outstanding and self._outstanding + num_candidates > limit:
            raise EngineOverloaded(f"{self._outstanding} candidates are queued or running; the limit is {limit}", retry_after_s=1)
        self._outstanding += num_candidates

    def _pinned(self, name: str | None) -> Adapter | None:
        """The adapter of a prompt, which is not freed before the prompt is answered."""
        adapter = None if name is None else self._adapters.find(name)
        if adapter is not None:
            adapter.pin()
        return adapter

    def _release(self, num_candidates: int, adapter: Adapter | None) -> None:
        self._outstanding -= num_candidates
        if adapter is not None:
            adapter.unpin()

    def _job(self, prompt: Prompt, encoded: Encoded, room: int, matchers: tuple[Matcher, ...], adapter: Adapter | None) -> Job:
        group = _CountedGroup(
            prompt.n,
            prompt_tokens=len(encoded.tokens),
            cancel=lambda indices: self._core.put(Cancel(job, indices)),
            allowance_tokens=prompt.allowance_tokens,
            on_allowance=lambda: self._core.put(Allow(job, group.allowance_tokens, group.is_ended)),
        )
        group.on_done = lambda: self._release(prompt.n, adapter)
        can_reason = bool(prompt.messages) and self._format.supports_thinking
        job = Job(
            prompt=prompt,
            tokens=encoded.tokens,
            allowance_tokens=prompt.allowance_tokens,
            max_tokens=room if prompt.max_tokens is not None else min(room, self._settings.max_tokens),
            group=group,
            recommended=self._recommended,
            matchers=matchers,
            in_reasoning=encoded.in_reasoning,
            parses_reasoning=can_reason,
            may_reason=can_reason and prompt.thinking is not False,
            close_thinking=self._close_thinking,
            adapter=adapter,
        )
        return job

    async def _encode(self, prompt: Prompt) -> Encoded:
        known = self._memo.get(prompt)
        if known is None:
            known = await self._in_pool(lambda: self._prompt_tokens(prompt))
            self._memo.put(prompt, known, num_tokens=len(known.tokens))
        return known

    # -- on the pool --

    def _matchers(self, prompt: Prompt) -> tuple[Matcher, ...]:
        grammars = self._grammars
        if (grammar := grammars.compile(prompt)) is not None:
            return tuple(grammars.start(grammar) for _ in range(prompt.n))
        calls = grammars.calls(prompt)
        return () if calls is None else tuple(grammars.start_calls(calls) for _ in range(prompt.n))

    def _prompt_tokens(self, prompt: Prompt) -> Encoded:
        if prompt.tokens is not None:
            self._check_ids(prompt.tokens, param="prompt")
            tokens, in_reasoning = list(prompt.tokens), False
        elif prompt.text is not None:
            tokens, in_reasoning = self._text_tokens(prompt.text, prompt.suffix), False
        else:
            tokens, in_reasoning = self._chat_tokens(prompt)
        if not tokens:
            raise BadRequest("the prompt is empty", param="prompt" if prompt.text is not None else "messages")
        return Encoded(np.array(tokens, np.int32), in_reasoning)

    def _text_tokens(self, text: str, suffix: str | None) -> list[int]:
        if suffix is None:
            return self._with_bos(self._vocab.tokenize(text, special=True))
        if min(self._vocab.fim) < 0:
            raise Unsupported(f"model '{self.capabilities.model}' was not trained to fill in the middle", param="suffix")
        before, after, middle = self._vocab.fim
        plain = self._vocab.tokenize
        return self._with_bos([before, *plain(text, special=False), after, *plain(suffix, special=False), middle])

    def _chat_tokens(self, prompt: Prompt) -> tuple[list[int], bool]:
        tools = () if prompt.tool_choice == "none" else prompt.tools
        segments = self._format.segments(prompt.messages, tools=tools, thinking=prompt.thinking)
        tokens = [token for text, special in segments for token in self._vocab.tokenize(text, special=special)]
        return self._with_bos(tokens), self._format.opens_reasoning("".join(text for text, _ in segments))

    def _with_bos(self, tokens: list[int]) -> list[int]:
        if self._vocab.adds_bos and tokens[:1] != [self._vocab.bos]:
            return [self._vocab.bos, *tokens]
        return tokens

    @cached_property
    def _close_thinking(self) -> tuple[int, ...]:
        return tuple(self._vocab.tokenize("\n</think>\n\n", special=True))

    @property
    def _grammars(self) -> Grammars:
        with self._grammar_lock:
            return self._built_grammars

    @cached_property
    def _built_grammars(self) -> Grammars:
        return Grammars(self._vocab.grammar_tokenizer())

    def _text_of(self, token: int) -> str:
        return self._vocab.raw_piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def _describe(self, model_id: str) -> Capabilities:
        return Capabilities(
            model=model_id,
            architecture=self._model.architecture,
            context_tokens=self._context_tokens,
            vocab_size=self._vocab.size,
            size_bytes=self._model.size_bytes,
            num_parameters=self._model.num_parameters,
            max_candidates=MAX_CANDIDATES,
            logprobs=True,
            features=True,
            tools=self._format.supports_tools,
            json_schema=True,
            grammar=True,
            thinking=self._format.supports_thinking,
            fill_in_middle=min(self._vocab.fim) >= 0,
            tokenize=True,
            embeddings=self._embedder.name if self._embedder else None,
            embedding_width=self._embedder.width if self._embedder else 0,
        )

    async def _in_pool(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


class _CountedGroup(Group):
    """A group that gives its place in the queue back when it is done."""

    on_done: Callable[[], None] | None = None

    def _wake(self) -> None:
        super()._wake()
        if self.is_done and self.on_done is not None:
            self.on_done()
            self.on_done = None


def _is_bound(prompt: Prompt) -> bool:
    """Whether a grammar may have to bind the answer."""
    return prompt.json_schema is not None or prompt.grammar is not None or bool(prompt.tools)


def recommended_sampling(model: Model) -> Recommended:
    """What the file's header recommends (general.sampling.*), else Qwen's model cards for Qwen3, else llama.cpp's defaults."""
    base = Recommended(temperature=0.6, top_p=0.95, top_k=20) if model.architecture.startswith("qwen3") else Recommended()
    found = {
        name: model.meta(f"general.sampling.{key}")
        for name, key in (("temperature", "temp"), ("top_p", "top_p"), ("top_k", "top_k"), ("min_p", "min_p"))
    }
    values = {name: float(text) for name, text in found.items() if text}
    return Recommended(**{**base._asdict(), **values, "top_k": int(values.get("top_k", base.top_k))})
