"""Writes vectors as JSON: in Workers AI's formats, as tensors for the SDK of 2023, and in OpenAI's format."""

import base64
import json
import sys
from array import array
from collections.abc import Iterable, Sequence
from functools import partial

from http_bridge.protocol.embedding_body import EmbeddingBody, OpenAiEmbeddingBody, PoolingName
from tailrace.v1.inference_pb2 import EmbedResponse

# Nine significant digits are enough to restore a float32 exactly.
_NUMBER = "%.9g"


def workers_ai_result(response: EmbedResponse, body: EmbeddingBody, pooling: PoolingName | None) -> bytes:
    """Return the result of /ai/run as JSON, without an envelope. `pooling`: value of that field; None leaves it out."""
    vectors = [embedding.values for embedding in response.embeddings]
    if body.form == "scores":
        query, contexts = vectors[0], vectors[1:]
        scores = ({"id": index, "score": _cosine(query, context)} for index, context in enumerate(contexts))
        return json.dumps({"response": list(scores)}, separators=(",", ":")).encode()
    shape = f'"shape":{_shape(vectors)}'
    end = "" if pooling is None else f',"pooling":"{pooling}"'
    if body.form == "contexts":
        return f'{{"response":{_vectors(vectors)},{shape}{end}}}'.encode()
    return f'{{{shape},"data":{_vectors(vectors)}{end}}}'.encode()


def tensors(response: EmbedResponse) -> bytes:
    """Return the tensor that the Workers SDK of 2023 turns into `{"shape", "data"}`."""
    vectors = [embedding.values for embedding in response.embeddings]
    tensor = f'{{"name":"embeddings","type":"float32","shape":{_shape(vectors)},"value":{_vectors(vectors)}}}'
    return f'{{"result":[{tensor}]}}'.encode()


def openai_reply(response: EmbedResponse, body: OpenAiEmbeddingBody, model: str) -> bytes:
    """Return the reply of /v1/embeddings. `model`: the name as the client wrote it."""
    write = _base64 if body.is_base64 else _vector
    data = ",".join(
        f'{{"object":"embedding","index":{index},"embedding":{write(embedding.values)}}}'
        for index, embedding in enumerate(response.embeddings)
    )
    usage = f'{{"prompt_tokens":{response.prompt_tokens},"total_tokens":{response.prompt_tokens}}}'
    return f'{{"object":"list","data":[{data}],"model":{json.dumps(model)},"usage":{usage}}}'.encode()


def _vector(values: Iterable[float]) -> str:
    return f"[{','.join(map(partial(str.__mod__, _NUMBER), values))}]"


def _vectors(vectors: Iterable[Iterable[float]]) -> str:
    return f"[{','.join(map(_vector, vectors))}]"


def _base64(values: Iterable[float]) -> str:
    numbers = array("f", values)
    if sys.byteorder == "big":
        numbers.byteswap()
    return f'"{base64.b64encode(numbers.tobytes()).decode()}"'


def _shape(vectors: Sequence[Sequence[float]]) -> str:
    return f"[{len(vectors)},{len(vectors[0])}]"


def _cosine(first: Sequence[float], second: Sequence[float]) -> float:
    product = sum(a * b for a, b in zip(first, second, strict=True))
    norms = (sum(a * a for a in first) * sum(b * b for b in second)) ** 0.5
    return float(_NUMBER % (product / norms)) if norms else 0.0
