"""One prompt (`Job`) and one candidate (`Sequence`) inside the engine. Both belong to the engine thread."""

from __future__ import annotations

import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from atlas.engine.adapters import Adapter
from atlas.engine.gain import Record
from atlas.engine.grammar import Matcher
from atlas.engine.group import Group
from atlas.engine.parse import OutputParser, Parsed
from atlas.engine.runner import Rows, Tokens, Vocab
from atlas.engine.sampler import Choice, ExactLogprobs, Recommended, Sampler, Want
from atlas.engine.text import TextStream
from atlas.types import Delta, Features, FinishReason, Generation, Prompt, Sampling, Timings, TokenLogprob, candidate_seed

ANSWERS_KEPT = 8  # of a prompt's ended candidates, to guess from; chosen


@dataclass(eq=False, kw_only=True)
class Job:
    """A submitted prompt, tokenised and checked; its candidates share the prompt's cells.

    Attributes:
        tokens: the prompt, (prompt_tokens,).
        max_tokens: bound on generated tokens per candidate; prompt plus this fits the context. Falls when the group is ended.
        allowance_tokens: a candidate that has generated this many is parked; None is no bound.
        matchers: where each candidate stands in the grammar its answer must follow; empty for free text.
        in_reasoning: the prompt ends inside an open think block.
        parses_reasoning: a think block in the answer is told apart from its text.
        may_reason: the answer may begin with a think block, grammar or not.
        close_thinking: tokens that end a think block when the budget is spent.
        adapter: what the cells are computed with; None is the model as it is.
        answers: of candidates that have ended, the last ones; the others may say the same.
        num_ended: how many candidates have.
    """

    prompt: Prompt
    tokens: Tokens
    max_tokens: int
    group: Group
    recommended: Recommended
    matchers: tuple[Matcher, ...] = ()
    in_reasoning: bool = False
    parses_reasoning: bool = False
    may_reason: bool = False
    close_thinking: tuple[int, ...] = ()
    adapter: Adapter | None = None
    seed: int = field(default_factory=lambda: secrets.randbits(32))
    submitted_at: float = field(default_factory=time.monotonic)
    arrival: int = 0
    allowance_tokens: int | None = None
    is_started: bool = False
    answers: deque[Tokens] = field(default_factory=lambda: deque(maxlen=ANSWERS_KEPT))
    num_ended: int = 0
    is_kept: bool = False  # one finished candidate already keeps the prompt as a prefix for others

    @property
    def order(self) -> tuple[int, int]:
        return self.prompt.priority, self.arrival

    @property
    def late_at(self) -> float | None:
        """When the deadline passes, on the monotonic clock."""
        deadline_s = self.prompt.deadline_s
        return None if deadline_s is None else self.submitted_at + deadline_s

    def sampling(self, index: int) -> Sampling:
        given = self.prompt.sampling
        return given[index] if len(given) > 1 else given[0]

    def candidate_seed(self, index: int) -> int:
        """A seed given for this candidate alone is used as it is; one given for all is spread over them."""
        seed = self.sampling(index).seed
        if seed is None:
            return candidate_seed(self.seed, index)
        return seed & 0xFFFFFFFF if len(self.prompt.sampling) > 1 else candidate_seed(seed, index)


class Step(NamedTuple):
    """What a step gave one candidate: something to hand on, and whether that was the last."""

    delta: Delta | None
    generation: Generation | None


class Sequence:
    """One candidate: its tokens, how far their cells are computed, how it samples, what it has said.

    Attributes:
        seq_id: the context's sequence id while running, else None.
        num_held: how many of its tokens have cells; the rest is still to be fed.
        is_placed: whether the prefix tree has been asked; done as late as the first prefill chunk.
        is_paused: others of its race go first.
        is_ended: nothing is to be drawn any more.
        key: of its adapter; 0 is the base.
        records: how guesses at what it says turn out, by their source.
    """

    def __init__(self, job: Job, index: int, vocab: Vocab, model_id: str) -> None:
        self.job, self.index = job, index
        self.key = job.adapter.key if job.adapter else 0
        self.seq_id: int | None = None
        self.num_held = 0
        self.records: dict[str, Record] = {}
        self.is_placed = False
        self.is_paused = self.is_ended = False
        self.prompt_length = len(job.tokens)
        self.length = self.prompt_length
        self._ids = np.empty(self.prompt_length + job.max_tokens + 1, np.int32)
        self._ids[: self.length] = job.tokens
        self._vocab, self._model_id = vocab, model_id
        self._matcher = job.matchers[index] if job.matchers else None
        tail = [int(token) for token in job.tokens[-64:]]
        self.sampler = Sampler(job.sampling(index), job.recommended, seed=job.candidate_seed(index), prompt_tail=tail)
        self._stream = TextStream(job.prompt.stop)
        self._parser = OutputParser(
            reasoning=job.parses_reasoning, in_reasoning=job.in_reasoning, tools=_parses_tools(job.prompt)
        )
        self._forced: list[int] = []  # the tokens to come, last first
        self._answer_started = False  # the grammar has bound a token
        self._reasoning_tokens = 0
        self._logprobs: list[TokenLogprob] = []
        self._sum_logprob = 0.0
        self._num_sampled = 0
        self._sum_state: Rows | None = None  # (width,) float64
        self._last_state: Rows | None = None
        self._num_states = 0
        self.started_at = 0.0
        self._first_at = 0.0

    @property
    def ids(self) -> Tokens:
        return self._ids[: self.length]

    @property
    def answer(self) -> Tokens:
        """What it has generated, behind the prompt's last few tokens."""
        return self._ids[max(0, self.prompt_length - 3) : self.length]

    @property
    def last_token(self) -> int:
        return int(self._ids[self.length - 1])

    @property
    def num_left(self) -> int:
        """How many tokens it may generate from here."""
        allowance = self.job.allowance_tokens
        most = self.job.max_tokens if allowance is None else min(self.job.max_tokens, allowance)
        return most - self.num_generated

    @property
    def num_generated(self) -> int:
        return self.length - self.prompt_length

    @property
    def placed_at(self) -> int:
        """Its sequence id, where it has one: it runs."""
        assert self.seq_id is not None
        return self.seq_id

    @property
    def is_parked(self) -> bool:
        """No rows for now."""
        return self.is_paused or self.is_spent

    @property
    def is_spent(self) -> bool:
        """It has generated what it may: no rows until more is allowed."""
        allowance = self.job.allowance_tokens
        return allowance is not None and self.num_generated >= allowance

    @property
    def to_feed(self) -> Tokens:
        return self._ids[self.num_held : self.length]

    @property
    def is_decoding(self) -> bool:
        """One sampled token to feed, everything before it computed."""
        return self.num_generated > 0 and self.num_held == self.length - 1

    def want(self, row: Rows) -> Want:
        """What this candidate asks of its logits, row: (vocabulary,)."""
        prompt = self.job.prompt
        return Want(self.sampler, self._matcher if self._is_bound(row) else None, prompt.top_logprobs, prompt.mean_logprob)

    def note_state(self, state: Rows) -> None:
        """Hidden state at a generated token, (width,)."""
        self._sum_state = state.astype(np.float64) if self._sum_state is None else self._sum_state + state
        self._last_state = state.copy()
        self._num_states += 1

    def take(self, choice: Choice, exact: ExactLogprobs | None) -> Step:
        """Add a drawn token; says what to hand on."""
        forced = self._next_forced()
        token = choice.token if forced is None else forced
        self._num_sampled += 1
        self._first_at = self._first_at or time.monotonic()
        self._sum_logprob += exact.of(token) if exact and token >= 0 else choice.logprob
        if token < 0 or token in self._vocab.eog:
            return self.finish("stop", is_end_token=token >= 0)
        self._ids[self.length] = token
        self.length += 1
        self.sampler.accept(token)
        return self._say(token, exact, forced is not None)

    def finish(self, reason: FinishReason, *, is_end_token: bool = False, pending: Delta | None = None) -> Step:
        """End here: flush held-back text and close the books."""
        self.is_ended = True
        rest = _joined(self._parser.feed(self._stream.finish()), self._parser.finish())
        if reason == "stop" and self._parser.tool_calls:
            reason = "tool_calls"
        said = pending or Delta()
        delta = Delta(
            index=self.index,
            text=said.text + rest.text,
            reasoning=said.reasoning + rest.reasoning,
            tool_calls=said.tool_calls + rest.tool_calls,
            logprobs=said.logprobs,
            finish_reason=reason,
        )
        self.sampler.close()
        return Step(delta, self._generation(reason, self.num_generated + is_end_token))

    def _say(self, token: int, exact: ExactLogprobs | None, is_forced: bool) -> Step:
        if self._parser.is_reasoning:
            self._reasoning_tokens += 1
        if self._matcher is not None and self._answer_started and not is_forced:
            self._matcher.accept(token)
        piece = self._vocab.piece(token)
        logprobs = (self._logprob(token, exact),) if exact else ()
        self._logprobs.extend(logprobs)
        said = self._parser.feed(self._stream.feed(piece))
        delta = Delta(index=self.index, text=said.text, reasoning=said.reasoning, tool_calls=said.tool_calls, logprobs=logprobs)
        if self._stream.stopped:
            return self.finish("stop", pending=delta)
        if self.num_generated >= self.job.max_tokens:
            return self.finish("length", pending=delta)
        is_empty = not (said.text or said.reasoning or said.tool_calls or logprobs)
        return Step(None if is_empty else delta, None)

    def _is_bound(self, row: Rows) -> bool:
        """Whether the grammar binds the next token: not while thinking, nor at a first token that opens a think block."""
        if self._matcher is None or self._parser.is_reasoning:
            return False
        if not self._answer_started and self._opens_thinking(row):
            return False
        self._answer_started = True
        return self._matcher.binds

    def _opens_thinking(self, row: Rows) -> bool:
        if not self.job.may_reason or self.num_generated:
            return False
        return int(row.argmax()) == self._vocab.token("<think>")

    def _next_forced(self) -> int | None:
        """The next token of a think block's enforced end, once the budget is spent; a block opened again is closed again."""
        budget = self.job.prompt.thinking_budget_tokens
        if not self._forced and budget is not None and self._parser.is_reasoning and self._reasoning_tokens >= budget:
            self._forced = list(self.job.close_thinking[::-1])
        return self._forced.pop() if self._forced else None

    def _logprob(self, token: int, exact: ExactLogprobs) -> TokenLogprob:
        raw = self._vocab.raw_piece
        top = tuple((int(other), raw(int(other), special=True), exact.of(int(other))) for other in exact.top)
        return TokenLogprob(token=token, text=self._vocab.piece(token), logprob=exact.of(token), top=top)

    def _generation(self, reason: FinishReason, num_tokens: int) -> Generation:
        job, now = self.job, time.monotonic()
        return Generation(
            index=self.index,
            text=self._parser.text,
            reasoning=self._parser.reasoning,
            reasoning_tokens=self._reasoning_tokens,
            tool_calls=self._parser.tool_calls,
            tokens=tuple(self._ids[self.prompt_length : self.length].tolist()),
            num_tokens=num_tokens,
            logprobs=tuple(self._logprobs),
            mean_logprob=self._mean_logprob(),
            features=self._features(),
            finish_reason=reason,
            matched_stop=self._stream.matched_stop,
            model=self._model_id,
            timings=Timings(
                queue_s=max(0.0, (self.started_at or now) - job.submitted_at),
                first_token_s=max(0.0, (self._first_at or now) - job.submitted_at),
                total_s=now - job.submitted_at,
            ),
        )

    def _mean_logprob(self) -> float | None:
        is_known = self.job.prompt.mean_logprob or self.job.prompt.top_logprobs is not None
        return self._sum_logprob / self._num_sampled if is_known and self._num_sampled else None

    def _features(self) -> Features | None:
        if self._sum_state is None or self._last_state is None:
            return None
        mean = self._sum_state / self._num_states
        return Features(mean=tuple(mean.tolist()), last=tuple(self._last_state.tolist()))


def _parses_tools(prompt: Prompt) -> bool:
    return bool(prompt.tools) and prompt.tool_choice != "none"


def _joined(first: Parsed, second: Parsed) -> Parsed:
    return Parsed(first.text + second.text, first.reasoning + second.reasoning, first.tool_calls + second.tool_calls)
