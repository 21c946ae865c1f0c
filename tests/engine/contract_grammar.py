"""What every engine must do with a grammar in llama.cpp's language."""

from __future__ import annotations

import re

import pytest

from atlas.engine import Engine
from atlas.errors import BadRequest
from atlas.types import Prompt, Sampling
from tests.engine.contract import CHECK, SCHEMA, check, generate, greedy, user

PAIRS = 'root ::= pair ("," pair){0,2}\npair ::= [a-c] "=" [0-9]{1,3}'


@check(lambda can: can.grammar)
async def a_grammar_is_obeyed_in_chats_and_raw_prompts(engine: Engine) -> None:
    hot = (Sampling(temperature=1.0, seed=3),)
    for source in ({"messages": user("pairs!")}, {"text": "pairs:"}):
        for generation in await generate(engine, Prompt(grammar=PAIRS, sampling=hot, n=3, max_tokens=100, **source)):
            assert generation.finish_reason == "stop"
            assert re.fullmatch(r"[a-c]=\d{1,3}(,[a-c]=\d{1,3}){0,2}", generation.text)


@check(lambda can: can.grammar)
async def a_grammar_that_is_none_or_has_company_is_refused(engine: Engine) -> None:
    for fields in ({"grammar": "root ::= ("}, {"grammar": PAIRS, "tools": (CHECK,)}, {"grammar": PAIRS, "json_schema": SCHEMA}):
        with pytest.raises(BadRequest):
            await generate(engine, greedy(**fields))
