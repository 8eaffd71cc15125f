"""/v1/embeddings: a vector for each text."""

import base64
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from trivium.server.errors import ApiError
from trivium.server.schema import MOST_INPUTS, EmbeddingRequest
from trivium.server.served import Embedding, pieces
from trivium.server.workers import Place

PIECE = 256  # tokens; between pieces others compute, and the work can be stopped


def texts(body: EmbeddingRequest) -> list[str]:
    """The texts of a request. Raises ApiError."""
    given = [body.input] if isinstance(body.input, str) else body.input
    if not given or len(given) > MOST_INPUTS:
        raise _wrong("input", f"input must hold 1 to {MOST_INPUTS} texts, not {len(given)}")
    if not all(isinstance(text, str) for text in given):
        raise _wrong("input", "send texts: token ids of another tokenizer mean nothing here")
    if not all(given):
        raise _wrong("input", "input holds an empty text")
    return [str(text) for text in given]


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_value")


def count(model: Embedding, wanted: Sequence[str]) -> list[int]:
    """The tokens of each text. Raises ApiError for one that is too long."""
    longest = model.embedder.max_tokens
    counts = [len(model.embedder.tokenizer.encode(text, wrap=True)) for text in wanted]
    for i, tokens in enumerate(counts):
        if tokens > longest:
            raise ApiError(
                400,
                f"text {i} of the input has {tokens} tokens and {model.id} reads {longest}: split "
                "it",
                param="input",
                code="context_length_exceeded",
            )
    return counts


def vectors(model: Embedding, wanted: Sequence[tuple[str, int]], place: Place[Tensor]) -> None:
    """The vectors of some texts after the other, float32 (N, C); a job."""

    def work() -> None:
        for some in pieces(wanted, PIECE, lambda text: text[1]):
            if place.left.is_set():
                return
            embed = partial(model.embedder.embed, [text for text, _ in some])
            place.post([model.worker.call(embed).float().cpu()])
        place.end()

    place.thread(work)


def to_json(model: Embedding, body: EmbeddingRequest, found: Tensor, tokens: int) -> dict[str, Any]:
    """OpenAI's answer. Fewer `dimensions` are the first ones, brought to length 1 again."""
    width = found.shape[1]
    if body.dimensions is not None:
        if body.dimensions > width:
            raise _wrong("dimensions", f"{model.id} makes vectors of {width} dimensions")
        if body.dimensions < width:
            found = F.normalize(found[:, : body.dimensions], dim=1)
    values: Sequence[Any] = found.tolist()
    if body.encoding_format == "base64":  # of little-endian float32
        raw = (row.contiguous().numpy().astype("<f4").tobytes() for row in found)
        values = [base64.b64encode(data).decode() for data in raw]
    data = [
        {"object": "embedding", "index": i, "embedding": value} for i, value in enumerate(values)
    ]
    used = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model.id, "usage": used}
