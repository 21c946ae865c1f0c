"""OpenAI's words for completions and embeddings, Jina's for reranking, llama-server's and vLLM's for tokens. Chat's: `wire`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from atlas.gateway.wire import Count, SamplingFields, Usage, Wire

PlainFinishReason = Literal["stop", "length"]
Inputs = str | Annotated[list[str | int | Annotated[list[int], Meta(max_length=1_000_000)]], Meta(min_length=1)]


class CompletionRequest(SamplingFields, kw_only=True):
    """`suffix` makes the prompt a fill-in-the-middle one."""

    prompt: Inputs
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class CompletionLogprobs(Wire):
    """Four parallel lists, one entry per token; `text_offset` counts characters from the start of `text`."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Wire):
    index: int
    text: str
    finish_reason: PlainFinishReason | None = None
    logprobs: CompletionLogprobs | None = None
    length_reason: str | UnsetType = UNSET  # ours: the limit that ended the answer, beside finish_reason "length"


class Completion(Wire):
    """A whole answer, or one event of a stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"


class EmbeddingRequest(Wire):
    model: str
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None


class Embedding(Wire):
    """`embedding` is a list of floats, or base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(Wire):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Wire):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class RerankDocument(Wire):
    text: str


class RerankRequest(Wire):
    """Jina's, Cohere's and llama-server's."""

    model: str
    query: str
    documents: Annotated[list[str | RerankDocument], Meta(min_length=1, max_length=1000)]  # at most, as Cohere
    top_n: Count | None = None
    return_documents: bool | None = None


class RerankResult(Wire):
    """`index` is the document's place in the request; `relevance_score` a cosine, from -1 to 1."""

    index: int
    relevance_score: float
    document: RerankDocument | UnsetType = UNSET


class RerankReply(Wire):
    """The nearest first. `method` is ours: how the scores were made."""

    model: str
    results: list[RerankResult]
    usage: EmbeddingUsage
    method: Literal["embedding_cosine"] = "embedding_cosine"
    object: Literal["list"] = "list"


class TokenizeRequest(Wire):
    """llama-server says `content`, vLLM `prompt`; `parse_special` reads control tokens such as <|im_end|> out of the text."""

    content: str | None = None
    prompt: str | None = None
    model: str | None = None
    parse_special: bool = True
    with_pieces: bool = False


class TokenPiece(Wire):
    """What a token stands for: text, or the bytes of one that is only a part of a character."""

    id: int
    piece: str | list[int]


class TokenizeReply(Wire):
    """`tokens` are objects only if the request asked for `with_pieces`, llama-server's word."""

    tokens: list[int | TokenPiece]
    count: int
    max_model_len: int


class DetokenizeRequest(Wire):
    tokens: list[int]
    model: str | None = None


class DetokenizeReply(Wire):
    """The text under both names: llama-server's and vLLM's."""

    content: str
    prompt: str


class InputTokens(Wire):
    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"
