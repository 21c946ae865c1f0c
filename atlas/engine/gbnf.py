"""llama.cpp's grammar language, GBNF, as the Lark that llguidance compiles."""

from __future__ import annotations

from llguidance.gbnf_to_lark import gbnf_to_lark

from atlas.errors import BadRequest

# Chosen: a thousand times what people write by hand. 64 KiB of alternatives take 0.15 s to translate and 0.3 s to build.
MAX_BYTES = 64 * 1024
_head = "%llguidance {}"


def to_lark(text: str) -> str:
    """The same grammar in Lark.

    Raises:
        BadRequest: it is too large, nested too deeply, or not GBNF.
    """
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise BadRequest(f"grammar: larger than {MAX_BYTES} bytes", param="grammar")
    try:
        lark: str = gbnf_to_lark(text)
    except RecursionError as error:
        raise BadRequest("grammar: nested too deeply", param="grammar") from error
    except Exception as error:  # the translator raises bare ones; whatever it is, it is about this text
        raise BadRequest(f"grammar: {' '.join(str(error).split())[:300]}", param="grammar") from error
    return lark.replace(_head, '%llguidance {"no_forcing": true}', 1)
