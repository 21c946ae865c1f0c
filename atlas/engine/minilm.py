"""The child process that runs MiniLM: texts in, unit vectors out, as length-prefixed MessagePack on stdin and stdout.

torch lives here and not in the server: its threads would compete with the model's, and a crash costs one embedding. The process
ends when its stdin does. Run by `atlas.engine.embedder` as `python -m atlas.engine.minilm PATH_OR_NAME`.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import Any, BinaryIO

import msgspec

HEADER = struct.Struct("<I")


class Request(msgspec.Struct, frozen=True):
    texts: list[str]


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """`vectors` is float32, row after row; `fault` says what is wrong with which input, and then there are no vectors."""

    vectors: bytes = b""
    num_tokens: int = 0
    fault: str = ""
    is_too_long: bool = False


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next frame; None at the end of the stream."""
    header = stream.read(HEADER.size)
    return stream.read(HEADER.unpack(header)[0]) if len(header) == HEADER.size else None


def frame(payload: bytes) -> bytes:
    return HEADER.pack(len(payload)) + payload


def answer(model: Any, texts: list[str]) -> Reply:
    lengths = [len(ids) for ids in model.tokenizer(texts, truncation=False)["input_ids"]]
    for index, length in enumerate(lengths):
        if length > model.max_seq_length:
            return Reply(fault=f"input {index} has {length} tokens; this model reads {model.max_seq_length}", is_too_long=True)
    vectors = model.encode(texts, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False)
    return Reply(vectors=vectors.astype("<f4").tobytes(), num_tokens=sum(lengths))


def main() -> None:
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not land between the frames
    import torch  # heavy, and this process exists for it
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    model = SentenceTransformer(sys.argv[1], device="cpu")
    while (payload := read_frame(sys.stdin.buffer)) is not None:
        reply = answer(model, msgspec.msgpack.decode(payload, type=Request).texts)
        frames.write(frame(msgspec.msgpack.encode(reply)))
        frames.flush()


if __name__ == "__main__":
    main()
