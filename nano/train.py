"""Train the nano model from nothing: `python -m nano.train --out DIR --seed 1`.

The number of steps is fixed, not the time, so that two trainings differ in their seed only. Muon updates the hidden matrices,
AdamW the embedding and the norms; bf16 autocast, which is 2 to 2.5 times as fast as fp32 on a CPU with AVX512-bf16.
Muon: https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from atlas.ralph import prompt_hash
from nano.corpus import KIND_WEIGHTS, LAST_KIND_WEIGHTS, Record, records
from nano.tokenizer import VOCAB_SIZE, load_tokenizer, train_tokenizer

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

BUCKET_TOKENS = (96, 128, 160, 192, 256, 320, 384, 512, 768, 1024, 2048)  # padded lengths: few shapes, little padding
BATCH_TOKENS = 2048
NUM_STEPS = 2500  # 5 M tokens
NUM_LAST_STEPS = 250  # on LAST_KIND_WEIGHTS, at a tenth of the rates
LAST_RATE = 0.1
LAST_SEED = 1_000_003  # added to the seed: other records than those of the first steps
WARM_UP_STEPS = 40
DECAY_SHARE = 0.4
MUON_LR, ADAM_LR = 0.02, 4e-3
LOG_EVERY_STEPS = 50
SAVE_EVERY_STEPS = 400


class Batch(NamedTuple):
    """Token ids and loss weights of each position, both (B, T)."""

    ids: torch.Tensor
    weights: torch.Tensor


def main() -> None:
    arguments = _parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    import torch

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    tokenizer_file = arguments.out / "tokenizer.json"
    train_tokenizer(tokenizer_file)
    tokenizer = load_tokenizer(tokenizer_file)
    model = load_model(arguments.start) if arguments.start else build_model()
    model.to(arguments.device)
    if arguments.start:
        first = json.loads((arguments.start / "training.json").read_text("utf-8"))
    else:
        batches = make_batches(tokenizer, arguments.seed, arguments.device)
        first = train(model, batches, arguments.steps, save_to=arguments.out)
        model.save_pretrained(arguments.out)
    batches = make_batches(tokenizer, arguments.seed + LAST_SEED, arguments.device, LAST_KIND_WEIGHTS)
    last = train(model, batches, NUM_LAST_STEPS, rate=LAST_RATE)
    model.save_pretrained(arguments.out)
    sums = {name: first[name] + last[name] for name in ("tokens", "wall_s")}
    steps = arguments.steps + NUM_LAST_STEPS
    recipe = {"seed": arguments.seed, "steps": steps, "prompt_hash": prompt_hash(), **last, **sums}
    (arguments.out / "training.json").write_text(json.dumps(recipe, indent=1) + "\n", "utf-8")
    print(recipe, flush=True)


def build_model() -> Any:
    """A random Qwen3 of 4.5 M parameters, fp32."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    # head_dim 128 is what GGUF readers assume; widths that are multiples of 256 leave every quantisation possible
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config)


def load_model(folder: Path) -> Any:
    """What the first steps left in `folder`."""
    import torch
    from transformers import Qwen3ForCausalLM

    return Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)


def train(
    model: Any, batches: Iterator[Batch], num_steps: int, *, rate: float = 1.0, save_to: Path | None = None
) -> dict[str, float]:
    """Run the steps, each at `rate` times its learning rate; returns what the model card reports."""
    import torch

    optimizers = _optimizers(model)
    started, num_tokens, average = time.monotonic(), 0, float("nan")
    for step in range(num_steps):
        _set_rates(optimizers, step, num_steps, rate)
        batch = next(batches)
        loss, written_loss = losses(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        num_tokens += batch.ids.numel()
        average = _smooth(average, written_loss.item())
        if (step + 1) % LOG_EVERY_STEPS == 0:
            _log(step + 1, num_tokens, time.monotonic() - started, average)
        if save_to and (step + 1) % SAVE_EVERY_STEPS == 0:
            model.save_pretrained(save_to)
    return {"tokens": num_tokens, "wall_s": round(time.monotonic() - started), "written_loss": round(average, 4)}


def losses(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted loss to minimise, and the plain loss on what the model should write."""
    import torch

    weights = batch.weights[:, 1:].reshape(-1)
    rows = weights.nonzero()[:, 0]  # padding and ignored text never reach the output matrix
    with torch.autocast(batch.ids.device.type, dtype=torch.bfloat16):
        hidden = model.model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state  # (B, T - 1, 256)
        logits = model.lm_head(hidden.reshape(-1, hidden.size(-1))[rows])
    each = torch.nn.functional.cross_entropy(logits.float(), batch.ids[:, 1:].reshape(-1)[rows], reduction="none")
    weights = weights[rows]
    written = weights == 1
    return (each * weights).sum() / weights.sum(), each[written].mean().detach()


def make_batches(
    tokenizer: Tokenizer, seed: int, device: str, kind_weights: Mapping[str, float] = KIND_WEIGHTS
) -> Iterator[Batch]:
    """Batches of about `BATCH_TOKENS`, each of one padded length, in the order in which they fill."""
    waiting: dict[int, list[tuple[list[int], list[float]]]] = {length: [] for length in BUCKET_TOKENS}
    for record in records(seed, kind_weights):
        ids, weights = _encode(tokenizer, record)
        length = next((length for length in BUCKET_TOKENS if length >= len(ids)), None)
        if length is None:
            continue
        waiting[length].append((ids, weights))
        if len(waiting[length]) == BATCH_TOKENS // length:
            yield _collate(waiting[length], length, device)
            waiting[length] = []


def _encode(tokenizer: Tokenizer, record: Record) -> tuple[list[int], list[float]]:
    """Ids and weights; every segment is tokenized on its own, as prompt and answer are when serving."""
    ids: list[int] = []
    weights: list[float] = []
    for segment, encoding in zip(record, tokenizer.encode_batch([segment.text for segment in record]), strict=True):
        ids += encoding.ids
        weights += [segment.weight] * len(encoding.ids)
    return ids, weights


def _collate(items: list[tuple[list[int], list[float]]], length: int, device: str) -> Batch:
    """Pad on the right: attention is causal, so no mask is needed, and padding has weight 0."""
    import torch

    ids = torch.zeros(len(items), length, dtype=torch.long)
    weights = torch.zeros(len(items), length)
    for row, (item_ids, item_weights) in enumerate(items):
        ids[row, : len(item_ids)] = torch.tensor(item_ids)
        weights[row, : len(item_ids)] = torch.tensor(item_weights)
    return Batch(ids.to(device), weights.to(device))


def _optimizers(model: Any) -> list[Any]:
    import torch

    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.01, momentum=0.95)
    optimizers: list[Any] = [muon, torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0)]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _set_rates(optimizers: list[Any], step: int, num_steps: int, rate: float) -> None:
    """Linear warm-up, constant, linear decay to 2 % over the last steps."""
    left = (num_steps - step) / (DECAY_SHARE * num_steps)
    factor = rate * min(1.0, (step + 1) / WARM_UP_STEPS, max(0.02, left))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def _smooth(average: float, value: float) -> float:
    """Running mean; a batch without a fully weighted answer has no value, and the first value is the mean."""
    if math.isnan(value):
        return average
    return value if math.isnan(average) else 0.98 * average + 0.02 * value


def _log(step: int, num_tokens: int, wall_s: float, average: float) -> None:
    print(
        f"step {step} tokens {num_tokens} wall_s {wall_s:.0f} tokens_per_s {num_tokens / wall_s:.0f} loss {average:.4f}",
        flush=True,
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nano.train", description="Train the nano model from nothing.")
    parser.add_argument("--out", type=Path, default=Path("nano/out"), help="directory of checkpoint and tokenizer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--start", type=Path, help="checkpoint of the first steps; only the last ones are run")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    return parser.parse_args()


if __name__ == "__main__":
    main()
