"""POST /run: what a Worker's AI binding asks, in every generation of its protocol.

    @cloudflare/ai up to 1.0.53   tensors, gzipped        {"input": [tensor…], "stream": …}
    @cloudflare/ai 1.1.0          ?version=2              {"inputs": {…}, "options": {…}}, the reply gzipped by hand
    the Workers runtime           ?version=3              {"inputs": {…}, "options": {…}}, the reply a bare object

The generation is read from the request itself: wrangler's proxy does not always pass the URL on. The model stands in a
header.
"""

from typing import Any

from http_bridge.api.base import Call, Job, check_model_name
from http_bridge.api.binding.tensor_replies import FAMILIES, TensorForm
from http_bridge.api.workers_ai.replies import BindingErrors, WorkersAiForm, bare, bare_zipped
from http_bridge.errors import ApiError
from http_bridge.protocol.run_body import RunBody
from http_bridge.protocol.to_grpc import run_request
from http_bridge.protocol.validation import bad_input, load

_MODEL_HEADER = "cf-consn-model-id"
_SDK_HEADER = "cf-consn-sdk-version"
_SECOND_GENERATION = "1.1.0"
_BARE_UP_TO = [1, 0, 35]
_LLAMA_2_MARK = "[INST]"
_Document = dict[str, Any]


class BindingSurface:
    """All generations."""

    errors = BindingErrors()

    def read(self, call: Call) -> Job:
        model = _model(call)
        if call.query.get("userInputs") is not None:
            raise bad_input("text generation takes JSON, not a stream of bytes")
        document = load(call.data, call.max_bytes)
        if isinstance(document.get("input"), list):
            return _tensor_job(call, document, model)
        inputs = document.get("inputs")
        if not isinstance(inputs, dict):
            raise bad_input("required properties at '/' are 'inputs'")
        options = document.get("options") or {}
        if isinstance(options, dict) and options.get("queueRequest"):
            raise bad_input("batches (queueRequest) are not supported: send each request by itself")
        return _object_job(call, {**inputs, "options": options}, model)


def _model(call: Call) -> str:
    name = call.headers.get(_MODEL_HEADER)
    if not name:
        raise ApiError(400, 3003, f"Request is missing headers or body: {_MODEL_HEADER}")
    # A prefix stands before the first colon, if its author gave one.
    prefix, colon, rest = name.partition(":")
    return check_model_name(rest if colon and not prefix.startswith("@") else name)


def _object_job(call: Call, document: _Document, model: str) -> Job:
    profile = call.profile
    body = call.bodies.run(document, model=model)
    packs_itself = call.query.get("version") == "2" or call.headers.get(_SDK_HEADER) == _SECOND_GENERATION
    form = WorkersAiForm(
        profile,
        bare_zipped if packs_itself else bare,
        has_padding=call.has_padding,
        is_json=body.json_schema is not None,
        has_tools=bool(body.tools),
    )
    return Job(run_request(body, profile, model=model, account=call.account), form, body.stream)


def _tensor_job(call: Call, document: _Document, model: str) -> Job:
    tensors = _values(document["input"])
    family = next((family for family in FAMILIES if family.prompt in tensors), None)
    if family is None:
        raise bad_input("'/input' holds no tensor with a prompt: INPUT_0 or text_input")
    prompt = _text(tensors[family.prompt])
    fields = {
        "prompt": prompt,
        "raw": _is_templated(call, prompt),
        "stream": document.get("stream"),
        "max_tokens": _max_tokens(tensors),
    }
    body: RunBody = call.bodies.run(fields, model=model)
    return Job(
        run_request(body, call.profile, model=model, account=call.account), TensorForm(family, prompt), body.stream
    )


def _is_templated(call: Call, prompt: str) -> bool:
    """Whether the prompt has been put into the model's template. Up to 1.0.35 the SDK did so with `messages` alone, by
    Llama 2's; a bare `prompt` is then the user's own words, as over REST."""
    version = call.headers.get(_SDK_HEADER, "0").split(".")
    if all(part.isdigit() for part in version) and [int(part) for part in version] <= _BARE_UP_TO:
        return _LLAMA_2_MARK in prompt
    return True


def _values(tensors: list[Any]) -> dict[str, Any]:
    """The first value of each tensor by its name. Raises ApiError 400/5006 for what is no tensor."""
    values = {}
    for index, tensor in enumerate(tensors):
        value = tensor.get("value") if isinstance(tensor, dict) else None
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if value is None or isinstance(value, list | dict) or not isinstance(tensor.get("name"), str):
            raise bad_input(f"'/input/{index}' is no tensor of one value")
        values[tensor["name"]] = value
    return values


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise bad_input("Type mismatch of the prompt's tensor, it holds no 'string'")
    return value


def _max_tokens(tensors: dict[str, Any]) -> Any:
    """In a tensor of its own, or in a JSON text of parameters."""
    if "INPUT_1" in tensors:
        return tensors["INPUT_1"]
    for name in ("sampling_parameters", "parameters"):
        if isinstance(text := tensors.get(name), str):
            parameters = load(text.encode(), len(text) * 4)
            return parameters.get("max_tokens", parameters.get("max_new_tokens"))
    return None
