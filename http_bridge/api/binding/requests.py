"""Parses POST /run, the request of a Worker's AI binding, in every version of its protocol.

    Client                        URL          Body                                   Reply

    @cloudflare/ai up to 1.0.53                {"input": [tensor…], …}, gzipped       tensors
    @cloudflare/ai 1.1.0          ?version=2   {"inputs": {…}, "options": {…}}        an object, gzipped (*)
    the Workers runtime           ?version=3   {"inputs": {…}, "options": {…}}        an object

(*) Without the header Content-Encoding, because this client always decompresses complete replies.

The body determines whether a request has tensors, because wrangler's proxy does not always pass the URL on. A header
names the model.
"""

import re
from typing import Any

from http_bridge.api.base import DirectJob, IncomingRequest, RunJob
from http_bridge.api.binding.headers import SDK_HEADER, is_zipped, model_of
from http_bridge.api.binding.tensor_replies import FAMILIES, TensorWriter
from http_bridge.api.workers_ai.replies import BindingErrors
from http_bridge.api.workers_ai.shapes import BARE, BARE_ZIPPED, model_job
from http_bridge.protocol.run_body import RunBody
from http_bridge.protocol.to_grpc import run_request
from http_bridge.protocol.validation.documents import bad_input, load

_BARE_UP_TO = [1, 0, 35]
_NUMBER = re.compile("[0-9]{1,9}")
_LLAMA_2_MARK = "[INST]"
_Document = dict[str, Any]


class BindingParser:
    """Parses the requests of all protocol versions."""

    errors = BindingErrors()

    def parse(self, incoming: IncomingRequest) -> RunJob | DirectJob:
        """Return the parsed request. Raises ApiError if the request is invalid."""
        model = model_of(incoming)
        if incoming.query.get("userInputs") is not None:
            raise bad_input("text generation takes JSON, not a stream of bytes")
        document = incoming.document()
        if isinstance(document.get("input"), list):
            return _tensor_job(incoming, document, model)
        inputs = document.get("inputs")
        if not isinstance(inputs, dict):
            raise bad_input("required properties at '/' are 'inputs'")
        options = document.get("options") or {}
        return _object_job(incoming, {**inputs, "options": options}, model)


def _object_job(incoming: IncomingRequest, document: _Document, model: str) -> RunJob | DirectJob:
    return model_job(incoming, document, model, BARE_ZIPPED if is_zipped(incoming) else BARE)


def _tensor_job(incoming: IncomingRequest, document: _Document, model: str) -> RunJob:
    tensors = _values(document["input"])
    family = next((family for family in FAMILIES if family.prompt in tensors), None)
    if family is None:
        raise bad_input("'/input' has no tensor with a prompt: INPUT_0 or text_input")
    prompt = _text(tensors[family.prompt])
    fields = {
        "prompt": prompt,
        "raw": _is_templated(incoming, prompt),
        "stream": document.get("stream"),
        "max_tokens": _max_tokens(tensors),
    }
    body: RunBody = incoming.bodies.run(fields, model=model)
    return RunJob(
        run_request(body, incoming.profile, model=model, account=incoming.account),
        TensorWriter(family, prompt),
        body.stream,
    )


def _is_templated(incoming: IncomingRequest, prompt: str) -> bool:
    """Return True if the prompt is already formatted with the model's chat template.

    SDK versions up to 1.0.35 format only `messages`, with Llama 2's template. They send a bare `prompt` as plain text.
    For these versions, the prompt counts as formatted if it contains [INST].
    """
    version = incoming.headers.get(SDK_HEADER, "0").split(".")
    if all(map(_NUMBER.fullmatch, version)) and [int(part) for part in version] <= _BARE_UP_TO:
        return _LLAMA_2_MARK in prompt
    return True


def _values(tensors: list[Any]) -> dict[str, Any]:
    """Return the value of each tensor by its name. Raises ApiError 400/5006 for an item that is not a tensor."""
    values = {}
    for index, tensor in enumerate(tensors):
        value = tensor.get("value") if isinstance(tensor, dict) else None
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if value is None or isinstance(value, list | dict) or not isinstance(tensor.get("name"), str):
            raise bad_input(f"'/input/{index}' is not a tensor of one value")
        values[tensor["name"]] = value
    return values


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise bad_input("Type mismatch of the prompt's tensor: its value is not a 'string'")
    return value


def _max_tokens(tensors: dict[str, Any]) -> Any:
    """Return the limit on new tokens from its own tensor or from a tensor with JSON parameters; None without either."""
    if "INPUT_1" in tensors:
        return tensors["INPUT_1"]
    for name in ("sampling_parameters", "parameters"):
        if isinstance(text := tensors.get(name), str):
            parameters = load(text.encode(), len(text) * 4)
            return parameters.get("max_tokens", parameters.get("max_new_tokens"))
    return None
