"""A small model that guesses for a large one: its cells, and which files may be one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from atlas.engine import Group
from atlas.engine.draft_model import ModelDrafter
from atlas.engine.drafts import Wanted
from atlas.engine.gain import RowCosts
from atlas.engine.runner import Model, Runner
from atlas.engine.sampler import Recommended
from atlas.engine.sequence import Job, Sequence
from atlas.errors import ModelFileError
from atlas.types import Prompt
from tests import ggufs
from tests.engine.test_llama import generate, running
from tests.engine.test_speculation import WARM, ask


@pytest.fixture(autouse=True)
def free_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and draft decodes cost nothing, so that whatever is guessed is computed on any machine."""
    monkeypatch.setattr(RowCosts, "seconds", lambda _self, _rows: 1.0)
    monkeypatch.setattr(ModelDrafter, "cost_s", lambda _self, _length: 0.0)


async def test_a_draft_is_kept_in_step_with_what_is_said() -> None:
    """The draft is the model itself: nearly every guess is right, unless its cells are of other tokens, or not there.

    Beginnings are shared, wrong turns taken back (what is sampled is not what was guessed), and 512 cells hold three answers.
    """
    path = ggufs.tiny_calm()
    async with running(path, speculation="draft", draft_model=str(path), context_tokens=512, draft_tokens=5) as engine:
        for number in range(12):
            before = engine.stats()
            await generate(engine, ask(f"{'You are careful. ' * 4}{number % 5}", n=3, max_tokens=60, sampling=WARM))
            greedy = [ask(f"{'You are careful. ' * 4}{number}{name}", max_tokens=40) for name in "ab"]
            middle = engine.stats()
            await asyncio.gather(*(generate(engine, prompt) for prompt in greedy))
            after = engine.stats()
            assert middle.accepted_tokens < middle.drafted_tokens, "what is sampled is not always likeliest"
            drafted = after.drafted_tokens - middle.drafted_tokens
            assert after.accepted_tokens - middle.accepted_tokens > 0.9 * drafted > 20
            assert middle.drafted_tokens > before.drafted_tokens


def test_a_draft_guesses_for_what_there_is_now_whatever_it_has_guessed_for_before() -> None:
    """As a fresh context would: other sequences that begin alike, and one that went another way while nothing was asked."""
    model = Model(ggufs.tiny_random(), gpu_layers=0)  # every token depends much on all before it

    runners = []

    def drafter() -> ModelDrafter:
        runners.append(Runner(model, context_tokens=1024, num_sequences=4, batch_tokens=512, threads=1))
        return ModelDrafter(model, runners[-1], chunk_tokens=64, first_cost_s=lambda: 0.0)

    def sequence(text: str) -> Sequence:
        tokens = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        job = Job(
            prompt=Prompt(text=text),
            tokens=tokens,
            max_tokens=50,
            group=Group(1, prompt_tokens=0, cancel=print),
            recommended=Recommended(),
        )
        return Sequence(job, 0, model.vocab, "calm")

    def guess(asked: ModelDrafter, of: Sequence) -> tuple[int, ...]:
        """The prompt is read in chunks, and until it is there is nothing to say."""
        for _ in range(10):
            [found] = asked.propose([Wanted(of, 6)])
            if found.tokens:
                return found.tokens
        raise AssertionError("640 tokens later there is no guess")

    kept = drafter()
    first = sequence("You are careful. " * 8)
    others = [sequence("You are careful. " * number + "xyz") for number in (7, 3, 8, 1, 5, 2)]
    for each in (first, *others, first):
        assert guess(kept, each) == guess(drafter(), each)
    first.ids[60:] = first.ids[60:][::-1].copy()
    assert guess(kept, first) == guess(drafter(), first)
    for runner in runners:
        runner.close()
    model.close()


async def test_a_draft_of_another_vocabulary_is_refused_with_the_difference(tmp_path: Path) -> None:
    padded = ggufs.random_gguf(tmp_path / "padded.gguf", vocab_pad=300)
    cat = ggufs.scripted_gguf(tmp_path / "cat.gguf", {"?": "cat"})
    dog = ggufs.scripted_gguf(tmp_path / "dog.gguf", {"?": "dog"})
    for path, draft, message in (
        (ggufs.tiny_calm(), str(padded), r"padded.gguf has a vocabulary of 300, calm.gguf 270: .* set engine.speculation to"),
        (cat, str(dog), r"dog.gguf has as token 270 b'dog', cat.gguf b'cat'"),
        (cat, str(tmp_path / "gone.gguf"), r"engine.draft_model: .*gone.gguf does not exist; or set engine.speculation"),
        (
            ggufs.tiny_calm(),
            str(ggufs.tiny_hybrid()),
            r"hybrid.gguf \(lfm2\) cannot take back a wrong guess: .* name a transformer",
        ),
        (cat, "", r"engine.draft_model is empty: .* set engine.speculation to 'ngram' or 'off'"),
    ):
        with pytest.raises(ModelFileError, match=message):
            async with running(path, speculation="draft", draft_model=draft):
                pass
