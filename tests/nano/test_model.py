"""The shipped files: size, card, tokenizer and greedy parity between transformers and llama.cpp."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest

from atlas.ralph import extract_code, prompt_hash, solve
from nano.benchmark import load_benchmark
from nano.chat import TEMPLATE_TEXT, render
from nano.classics import ASKS, CLASSICS
from nano.corpus import MAKERS, records, text_of
from nano.export import GGUF_NAME, MODEL_DIR
from nano.generate import Generator
from nano.judge import judge
from nano.tasks import draw_program, make_task
from nano.tokenizer import CONTROL_TOKENS, VISIBLE_TOKENS, VOCAB_SIZE, load_tokenizer

AWKWARD = (
    "",
    " ",
    "\n",
    "\r\n",
    "a\r\nb\r\n\r\n  c",
    "h\u00e9llo w\u00f6rld \u65e5\u672c\u8a9e \u041f\u0440\u0438\u0432\u0435\u0442 \U0001f600\U0001f1e9\U0001f1ea e\u0301",
    " \u00a0nbsp\u00a0\u2003em\u200bzero",
    "\t\ttabs\t mixed \t\n\n\n  end  ",
    "I'll don't WE'VE 's 'S 'lL y'all",
    "12345 3.14159 0x1F 1_000 \u0661\u0662\u00bd",
    "x" * 300,
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "<|fim_prefix|>def f(<|fim_suffix|>)<|fim_middle|>xs<|fim_pad|><|repo_name|>r<|file_sep|>",
    "<think>\n\n</think>\n\n<tool_call>\n{}\n</tool_call><tool_response>x</tool_response>",
    "<|im_start|", "<think", "</ think>", "<|im_end|>  \n", "a<think>b",
    "~~~!!!???***((( ))) {}[]<>|&^%$#@`'\";:,./\\",
    "\x00\x01\x7f",
)  # fmt: skip


@pytest.fixture(scope="module")
def generator() -> Iterator[Generator]:
    generator = Generator(MODEL_DIR / GGUF_NAME)
    yield generator
    generator.close()


def test_everything_shipped_is_at_most_16_mb() -> None:
    assert sum(path.stat().st_size for path in MODEL_DIR.rglob("*") if path.is_file()) <= 16_000_000


def test_the_model_was_trained_on_the_prompts_of_today() -> None:
    """If this fails, a prompt changed: `make nano` and a new card, or take the change back."""
    assert json.loads((MODEL_DIR / "training.json").read_text("utf-8"))["prompt_hash"] == prompt_hash()
    assert prompt_hash() in (MODEL_DIR / "README.md").read_text("utf-8")


def test_the_card_shows_the_recorded_figures() -> None:
    from nano.evaluate import as_table

    table = as_table(json.loads((MODEL_DIR / "evaluation.json").read_text("utf-8")))
    assert table in (MODEL_DIR / "README.md").read_text("utf-8")


def test_the_recorded_pass_rate_is_in_the_intended_range() -> None:
    figures = json.loads((MODEL_DIR / "evaluation.json").read_text("utf-8"))
    assert 0.40 <= figures["cells"]["all"]["pass@1"][0] <= 0.65


def test_both_tokenizers_agree_on_every_text(generator: Generator) -> None:
    ours = load_tokenizer(MODEL_DIR / "tokenizer.json")
    texts = [*AWKWARD, *map(text_of, itertools.islice(records(9), 1000))]
    assert [text for text in texts if ours.encode(text).ids != generator.tokenize(text)] == []


def test_every_text_comes_back_from_its_tokens(generator: Generator) -> None:
    assert [text for text in AWKWARD if generator.detokenize(generator.tokenize(text)) != text] == []


def test_special_tokens_have_the_types_llama_cpp_expects() -> None:
    import gguf

    fields = gguf.GGUFReader(MODEL_DIR / GGUF_NAME).fields
    tokens, types = fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.token_type"].contents()
    assert len(tokens) == VOCAB_SIZE
    assert [token for token, kind in zip(tokens, types, strict=True) if kind == gguf.TokenType.CONTROL] == list(CONTROL_TOKENS)
    assert [token for token, kind in zip(tokens, types, strict=True) if kind == gguf.TokenType.USER_DEFINED] == list(
        VISIBLE_TOKENS
    )
    assert fields["tokenizer.chat_template"].contents() == TEMPLATE_TEXT


def test_transformers_reads_the_tokenizer_and_renders_the_same_template() -> None:
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
    messages = solve("Write f(xs).", hint="sum")
    turns = [{"role": message.role, "content": message.content} for message in messages]
    for thinking, flags in ((None, {}), (False, {"enable_thinking": False})):
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **flags)
        assert text == render(messages, thinking=thinking)
    assert (
        tokenizer("<|im_start|>x<think>")["input_ids"]
        == load_tokenizer(MODEL_DIR / "tokenizer.json").encode("<|im_start|>x<think>").ids
    )


def test_greedy_answers_agree_between_transformers_and_q8_0(generator: Generator) -> None:
    """24 prompts. Q8_0 rounds the weights, so a near-tie may fall the other way: at most one answer in six may differ.

    One forward pass over prompt and answer decides it: greedy decoding writes this very answer if and only if each of its tokens,
    and the end of turn, is the most likely one where it stands.
    """
    import torch
    import transformers

    torch.set_num_threads(1)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    differing = []
    for task in load_benchmark()[:: len(load_benchmark()) // 24][:24]:
        prompt = render(solve(task.prompt, system=None))
        (answer,) = generator.generate(prompt, num_candidates=1, temperature=0.0)
        num_prompt, ids = len(generator.tokenize(prompt)), generator.tokenize(prompt + answer + "<|im_end|>")
        with torch.no_grad():
            likeliest = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        if likeliest[num_prompt - 1 : -1] != ids[num_prompt:]:
            differing.append(task.prompt)
    assert len(differing) <= 4, differing


def test_simple_tasks_are_solved_with_every_slot_filled(generator: Generator) -> None:
    """Depth 0 and 1 through the platform's own prompt: formats are learnt, whatever the logic costs."""
    rng, passed = random.Random(11), 0
    for index in range(20):
        task = make_task(draw_program(rng, index % 2), index)
        prompt = render(
            solve(task.prompt, examples=task.visible[:2], doctest=index % 3 == 0), thinking=False if index % 2 else None
        )
        (answer,) = generator.generate(prompt, num_candidates=1, temperature=0.0)
        passed += judge(extract_code(answer), task.entry_point, task.hidden).passed
    assert passed >= 16


def test_an_answer_thinks_nothing_exactly_when_the_prompt_has_not_done_so(generator: Generator) -> None:
    messages = solve("Write f(xs). Given a list xs of integers, return the sum.")
    (written,) = generator.generate(render(messages), num_candidates=1, temperature=0.0)
    (given,) = generator.generate(render(messages, thinking=False), num_candidates=1, temperature=0.0)
    assert written.startswith("<think>\n\n</think>\n\n```python\n")
    assert given.startswith("```python\n")


def test_a_rewrite_has_the_form_of_a_block(generator: Generator) -> None:
    """The form only: what stands after SEARCH is often not quite the file's text, as the card says."""
    rng, well_formed = random.Random(4), 0
    for _ in range(10):
        prompt = text_of(MAKERS["rewrite"](rng)[:-1])
        (answer,) = generator.generate(prompt, num_candidates=1, temperature=0.0, max_tokens=400)
        well_formed += (
            re.search(r"```python\n<<<<<<< SEARCH\ndef .+\n=======\ndef .+\n>>>>>>> REPLACE\n```$", answer, re.DOTALL) is not None
        )
    assert well_formed >= 9


def test_a_gap_is_filled_from_the_docstring(generator: Generator) -> None:
    """The content only: nano often does not end a gap where it should, as the card says."""
    before = 'def f(xs):\n    """Given a list xs of integers, return the sum."""\n'
    prompt = f"<|fim_prefix|>{before}<|fim_suffix|><|fim_middle|>"
    (answer,) = generator.generate(prompt, num_candidates=1, temperature=0.0)
    assert answer.startswith("    return sum(xs")


def test_the_functions_people_ask_for_first_are_known(generator: Generator) -> None:
    passed = 0
    for classic in CLASSICS:
        prompt = render(solve(ASKS[1].format(signature=classic.signature, what=classic.wordings[0]), system=None))
        (answer,) = generator.generate(prompt, num_candidates=1, temperature=0.0)
        passed += extract_code(answer) == classic.source
    assert passed >= len(CLASSICS) - 3
