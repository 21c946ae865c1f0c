"""Answers for the evaluator, from the project's own engine: k candidates share one prompt and are decoded together.

Everything else asks for text through `Generator.generate` only; the model's distribution is sampled as it is (temperature, no
top-k, no top-p, no min-p), so that figures do not depend on anybody's choice of sampler.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from atlas.engine import load_engine
from atlas.settings import EngineSettings
from atlas.types import Prompt, Sampling

MAX_CANDIDATES = 64
CONTEXT_CELLS = 16_384  # 64 candidates of 220 tokens behind a prompt of 2,000


class Generator:
    """One model and an event loop of its own; not thread-safe, and not for use inside another loop.

    Raises:
        ModelFileError: there is no such model file, or llama.cpp cannot read it.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        settings = EngineSettings(
            threads=threads, context_tokens=CONTEXT_CELLS, max_sequences=MAX_CANDIDATES, gpu_layers=0, embedder="off"
        )
        self._loop = asyncio.Runner()
        self._engine = self._loop.run(load_engine(path, model_id=path.stem, settings=settings))

    def close(self) -> None:
        self._loop.run(self._engine.close())
        self._loop.close()

    def tokenize(self, text: str) -> list[int]:
        """Ids, special tokens parsed, nothing added."""
        return self._loop.run(self._engine.tokenize(text, special=True))

    def detokenize(self, ids: list[int]) -> str:
        """Text, special tokens included; broken UTF-8 is replaced."""
        return self._loop.run(self._engine.detokenize(ids))

    def generate(
        self, prompt: str, *, num_candidates: int, temperature: float, seed: int = 0, max_tokens: int = 256
    ) -> list[str]:
        """Answers to a rendered prompt, without the end-of-turn token; `temperature` 0 is greedy.

        An answer that reaches `max_tokens` is cut there. Equal arguments give equal answers on one machine.
        """
        sampling = Sampling(temperature=temperature, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
        asked = Prompt(text=prompt, n=num_candidates, sampling=(sampling,), max_tokens=max_tokens)
        return self._loop.run(self._answers(asked))

    async def _answers(self, prompt: Prompt) -> list[str]:
        group = await self._engine.submit(prompt)
        return [await self._engine.detokenize(generation.tokens) for generation in await group.all()]
