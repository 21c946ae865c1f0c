"""Write the shipped files from a checkpoint: `python -m nano.export CHECKPOINT`.

bf16 safetensors with tokenizer and configuration for transformers, and one Q8_0 GGUF for llama.cpp with the same tokenizer and
chat template. Names and keys are llama.cpp's (`gguf-py/gguf/constants.py`, `src/models/qwen3.cpp`).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from nano.chat import TEMPLATE_TEXT
from nano.tokenizer import CONTROL_TOKENS, VISIBLE_TOKENS

MODEL_DIR = Path(__file__).parent.parent / "models" / "nano"
GGUF_NAME = "nano-q8_0.gguf"
RECOMMENDED_TEMPERATURE = 0.2  # chosen: a first answer should be a likely one; best-of-k sets its own
TENSOR_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP_NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nano.export", description="Write the files that are shipped.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    export_transformers(arguments.checkpoint, arguments.out)
    export_gguf(arguments.out, arguments.out / GGUF_NAME)
    print(*(f"{path.stat().st_size:>9} {path.name}" for path in sorted(arguments.out.iterdir())), sep="\n")


def export_transformers(checkpoint: Path, out: Path) -> None:
    """bf16 weights with everything `AutoModelForCausalLM` and `AutoTokenizer` need."""
    import torch  # only this function needs it
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    tensors.pop("lm_head.weight", None)  # tied to the embedding
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    _write_json(out / "config.json", {**config, "dtype": "bfloat16", "use_cache": True})
    _write_json(out / "generation_config.json", _generation_config())
    _write_json(out / "tokenizer_config.json", _tokenizer_config(config["max_position_embeddings"]))
    shutil.copyfile(checkpoint / "tokenizer.json", out / "tokenizer.json")
    shutil.copyfile(checkpoint / "training.json", out / "training.json")
    (out / "chat_template.jinja").write_text(TEMPLATE_TEXT + "\n", "utf-8")


def export_gguf(model_dir: Path, path: Path) -> None:
    """One Q8_0 file from the bf16 weights in `model_dir`; norms stay f32, as llama.cpp's own converter does."""
    config = json.loads((model_dir / "config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(path, "qwen3")
    _add_architecture(writer, config)
    _add_tokenizer(writer, json.loads((model_dir / "tokenizer.json").read_text("utf-8")))
    for name, values in _tensors(model_dir):
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensor_name(name: str) -> str:
    """llama.cpp's name of a transformers tensor."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
    if match is None:
        raise ValueError(f"no GGUF name for tensor {name!r}")
    return f"blk.{match[1]}.{TENSOR_NAMES[match[2]]}.weight"


def _tensors(model_dir: Path) -> list[tuple[str, np.ndarray[Any, np.dtype[np.float32]]]]:
    from safetensors.torch import load_file

    loaded = load_file(model_dir / "model.safetensors")
    return [(gguf_tensor_name(name), tensor.float().numpy()) for name, tensor in loaded.items()]


def _add_architecture(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_type("model")
    writer.add_name("ATLAS nano")
    writer.add_license("apache-2.0")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_sampling_temp(RECOMMENDED_TEMPERATURE)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any]) -> None:
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([_token_type(token) for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(vocabulary["<|im_end|>"])
    writer.add_pad_token_id(vocabulary["<|endoftext|>"])
    writer.add_bos_token_id(vocabulary["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE_TEXT)


def _token_type(token: str) -> gguf.TokenType:
    if token in CONTROL_TOKENS:
        return gguf.TokenType.CONTROL
    return gguf.TokenType.USER_DEFINED if token in VISIBLE_TOKENS else gguf.TokenType.NORMAL


def _generation_config() -> dict[str, Any]:
    ends = [CONTROL_TOKENS.index("<|im_end|>"), CONTROL_TOKENS.index("<|endoftext|>")]
    return {"do_sample": True, "temperature": RECOMMENDED_TEMPERATURE, "top_k": 0, "eos_token_id": ends, "pad_token_id": 0}


def _tokenizer_config(context_tokens: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_tokens,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
