"""What a request may cost before it runs, and what it did cost: bounds on tokens, and prices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from atlas.engine import Engine
from atlas.errors import ContextLengthExceeded
from atlas.gateway.inputs import Input
from atlas.settings import Price
from atlas.types import Prompt

MICRO = 1_000_000
# Templates add special tokens and role names around each message and tool: under 10 in Qwen's, Llama's and Mistral's; half as
# much again for others.
TEMPLATE_TOKENS = 16
INPUT_TOKENS = 4  # embedding models add a start and an end


class Tariff:
    """Prices per million tokens, exact to a millionth of the currency per million tokens."""

    def __init__(self, prices: Mapping[str, Price]) -> None:
        self._prices = {model: (round(price.prompt * MICRO), round(price.completion * MICRO)) for model, price in prices.items()}

    def cost(self, model: str, *, prompt_tokens: int, completion_tokens: int) -> int:
        """In millionths of the currency, rounded up; 0 where the model has no price. An adapter without one costs its model's."""
        price = self._prices.get(model) or self._prices.get(model.rpartition(":")[0])
        return 0 if price is None else -(-(prompt_tokens * price[0] + completion_tokens * price[1]) // MICRO)


async def count_prompt(engine: Engine, prompt: Prompt) -> int:
    """Tokens of the prompt, or a bound where the engine cannot count.

    Raises:
        ContextLengthExceeded: no answer would fit behind it; before anything is charged.
    """
    what = engine.capabilities
    if not what.tokenize or engine.is_asleep:  # it is not woken before somebody pays for what it is woken for
        bound = most_prompt_tokens(prompt)
        return min(bound, what.context_tokens or bound)
    count = await engine.count_tokens(prompt)
    if count >= what.context_tokens:
        raise ContextLengthExceeded(
            f"this model's maximum context length is {what.context_tokens} tokens; the prompt has {count}: shorten it",
            param="messages" if prompt.messages else "prompt",
        )
    return count


def most_prompt_tokens(prompt: Prompt) -> int:
    """More tokens than this a prompt cannot have, whatever the tokenizer: none of them is shorter than a byte of text."""
    if prompt.tokens is not None:
        return len(prompt.tokens)
    if prompt.text is not None:
        return len(prompt.text.encode()) + len((prompt.suffix or "").encode()) + TEMPLATE_TOKENS
    num_parts = 1 + len(prompt.messages) + len(prompt.tools)
    return len(_encoder.encode((prompt.messages, prompt.tools, prompt.json_schema))) + TEMPLATE_TOKENS * num_parts


def most_input_tokens(inputs: Sequence[Input]) -> int:
    """The same for texts and token lists to embed."""
    return sum(len(entry.encode() if isinstance(entry, str) else entry) + INPUT_TOKENS for entry in inputs)


_encoder = msgspec.json.Encoder()
