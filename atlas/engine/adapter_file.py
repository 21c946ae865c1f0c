"""Whether a LoRA file fits the model that is loaded, decided before llama.cpp sees it.

llama.cpp tells its log why it refuses a file, and nobody else; and some that it takes end the process at their first decode: a
rank that differs between two halves of a pair, numbers of a type it cannot multiply with, a file for tied embeddings.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from atlas.engine.gguf_header import FLOAT32, Header, Tensor, read_header
from atlas.errors import ModelFileError

NUMBERS = {0: "F32", 1: "F16", 8: "Q8_0", 30: "BF16"}  # enum ggml_type: what convert_lora_to_gguf.py writes
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
NVFP4 = 40  # llama.cpp scales these weights after what the adapter adds, and so refuses to
WAY_OUT = "make it with llama.cpp's convert_lora_to_gguf.py, from an adapter trained on this model"


class Pair(NamedTuple):
    """The two halves of what is added to one weight."""

    a: Tensor
    b: Tensor


def check_adapter(path: Path, model_path: Path) -> None:
    """Refuse a file that cannot be applied to this model.

    Raises:
        ModelFileError: names the file, what is wrong with it, and what to do.
    """
    adapter, model = read_header(path), read_header(model_path)
    fault = _kind_fault(adapter, model) or _tensors_fault(adapter, model)
    if fault:
        raise ModelFileError(f"adapter {path} {fault}; the model is {model_path.name}: {WAY_OUT}")


def _kind_fault(adapter: Header, model: Header) -> str:
    if adapter.text("general.type") != "adapter":
        return f"is no adapter (its general.type is '{adapter.text('general.type') or 'model'}')"
    if adapter.text("adapter.type") != "lora":
        return f"is an adapter of type '{adapter.text('adapter.type')}'; only 'lora' can be used"
    made_for, runs = adapter.text("general.architecture"), model.text("general.architecture")
    if made_for != runs:
        return f"was made for the architecture '{made_for}', the engine runs '{runs}'"
    if "adapter.alora.invocation_tokens" in adapter.values:
        return "is an activated LoRA (aLoRA), which works from a certain token on only; ATLAS applies adapters to whole prompts"
    alpha = adapter.values.get("adapter.lora.alpha")
    if alpha is not None and alpha.kind != FLOAT32:
        return "has an adapter.lora.alpha that is no 32-bit float"
    return ""


def _tensors_fault(adapter: Header, model: Header) -> str:
    halves = {name: tensor for name, tensor in adapter.tensors.items() if not name.endswith("_norm.weight")}  # as llama.cpp does
    strange = [name for name in halves if not name.endswith((".lora_a", ".lora_b"))]
    if strange:
        return f"has a tensor '{strange[0]}' that is no half of a LoRA pair"
    names = sorted({name.rpartition(".")[0] for name in halves})
    if not names:
        return "changes no weight at all"
    for name in names:
        if f"{name}.lora_a" not in halves or f"{name}.lora_b" not in halves:
            return f"has one half only of the pair for '{name}'"
        fault = _pair_fault(name, Pair(halves[f"{name}.lora_a"], halves[f"{name}.lora_b"]), model)
        if fault:
            return fault
    return ""


def _pair_fault(name: str, pair: Pair, model: Header) -> str:
    weight = model.tensors.get(name)
    if weight is None:
        is_whole = not _is_split(model)
        return f"changes '{name}', which the model does not have" if is_whole else ""  # else llama.cpp looks in the other files
    if name == EMBEDDING and OUTPUT not in model.tensors:
        return f"changes '{name}', which is the model's output too (tied embeddings): llama.cpp cannot apply that"
    if weight.kind == NVFP4:
        return f"changes '{name}', whose numbers are NVFP4: llama.cpp cannot apply that"
    types = [tensor.kind for tensor in pair if tensor.kind not in NUMBERS]
    if types:
        return f"has numbers of ggml's type {types[0]} for '{name}'; only {', '.join(NUMBERS.values())} can be used"
    return "" if _fits(name, pair, weight) else f"has shapes {pair.a.shape} and {pair.b.shape} for '{name}' of {weight.shape}"


def _fits(name: str, pair: Pair, weight: Tensor) -> bool:
    """Shapes: a (inputs, rank), b (rank, outputs), experts behind both; of the embedding a (rank, tokens), b (rank, width)."""
    if min(len(pair.a.shape), len(pair.b.shape), len(weight.shape)) < 2 or 0 in pair.a.shape:
        return False
    inputs, outputs, *experts = weight.shape
    if name == EMBEDDING:
        rank = pair.a.shape[0]
        return pair.a.shape == (rank, outputs) and pair.b.shape == (rank, inputs)
    rank = pair.a.shape[1]
    return pair.a.shape == (inputs, rank, *experts) and pair.b.shape == (rank, outputs, *experts)


def _is_split(model: Header) -> bool:
    parts = model.values.get("split.count")
    return parts is not None and parts.value != 1
