from __future__ import annotations

from typing import Any

import msgspec
import pytest

from atlas.engine import Engine
from atlas.engine.chat_format import ChatFormat
from atlas.engine.memo import PromptMemo
from atlas.errors import ModelNotFound
from atlas.types import Message, Prompt, Sampling, Tool
from tests import ggufs
from tests.engine.test_llama import running

TOOL = Tool(name="f", parameters={"type": "object", "properties": {"x": {"type": "integer"}}})


def ask(text: str = "hi", **fields: Any) -> Prompt:
    return Prompt(messages=(Message(role="user", content=text),), **fields)


def test_a_prompt_is_known_again_whatever_its_bounds_and_owner() -> None:
    memo: PromptMemo[str] = PromptMemo()
    memo.put(ask(tools=(TOOL,)), "value", num_tokens=1)
    again = ask(tools=(msgspec.structs.replace(TOOL),), owner="a", priority=0, deadline_s=1.0, allowance_tokens=5, max_tokens=9)
    assert memo.get(again) == "value"
    assert memo.get(msgspec.structs.replace(again, sampling=(Sampling(seed=1),), n=3)) == "value"


@pytest.mark.parametrize(
    "other",
    [
        ask("ho", tools=(TOOL,)),
        ask(),
        ask(tools=(msgspec.structs.replace(TOOL, description="new"),)),
        ask(tools=(TOOL,), tool_choice="none"),
        ask(tools=(TOOL,), thinking=False),
        Prompt(text="hi"),
        Prompt(text="hi", suffix=""),
        Prompt(tokens=(1,)),
    ],
)
def test_another_prompt_is_not_taken_for_it(other: Prompt) -> None:
    memo: PromptMemo[str] = PromptMemo()
    memo.put(ask(tools=(TOOL,)), "value", num_tokens=1)
    assert memo.get(other) is None


def test_the_least_recently_used_go_first_and_one_too_long_is_kept_alone() -> None:
    memo: PromptMemo[str] = PromptMemo(limit_tokens=10)
    for name in "abc":
        memo.put(ask(name), name, num_tokens=4)
        memo.get(ask("a"))
    assert [memo.get(ask(name)) for name in "abc"] == ["a", None, "c"]
    memo.put(ask("a"), "again", num_tokens=4)
    assert [memo.get(ask(name)) for name in "ac"] == ["again", "c"]
    memo.put(ask("long"), "long", num_tokens=50)
    assert [memo.get(ask(name)) for name in ("a", "c", "long")] == [None, None, "long"]


async def counted_and_submitted(engine: Engine, *prompts: Prompt) -> int:
    """Count, then submit each; returns the tokens counted."""
    total = 0
    for prompt in prompts:
        num_tokens = await engine.count_tokens(prompt)
        group = await engine.submit(msgspec.structs.replace(prompt, allowance_tokens=3, owner="someone"))
        assert group.prompt_tokens == num_tokens
        group.end()
        await group.all()
        total += num_tokens
    return total


async def test_a_counted_prompt_is_not_rendered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    segments = ChatFormat.segments

    def noted(*args: Any, **fields: Any) -> Any:
        calls.append(args)
        return segments(*args, **fields)

    monkeypatch.setattr(ChatFormat, "segments", noted)
    async with running(ggufs.tiny_random()) as engine:
        assert await counted_and_submitted(engine, ask("one"), ask("two", tools=(TOOL,)), ask("one"))
    assert len(calls) == 2


async def test_counting_refuses_what_submitting_refuses() -> None:
    async with running(ggufs.tiny_random()) as engine:
        with pytest.raises(ModelNotFound):
            await engine.count_tokens(ask(model="other"))
        assert await engine.count_tokens(ask("x" * 5000)) > 4096, "but for its length"
