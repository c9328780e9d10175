"""Refusals of Workers AI in production that Tailrace has only in a strict profile: 5023, 5028 and 8006.

Code that is tested with a strict profile meets these errors before it is deployed.

Sources of the removed models: Workers AI's release notes of 2025-09-18 and its changelog of 2026-05-08.
@cf/moonshotai/kimi-k2.5 is not among them, because Cloudflare serves a later model under its name.
"""

from collections.abc import Mapping

from http_bridge.errors import ApiError
from http_bridge.protocol.profiles import Profile
from http_bridge.protocol.run_body import RunBody

_REMOVED_IN_2025 = """
@hf/thebloke/zephyr-7b-beta-awq @hf/thebloke/mistral-7b-instruct-v0.1-awq @hf/thebloke/llama-2-13b-chat-awq
@hf/thebloke/openhermes-2.5-mistral-7b-awq @hf/thebloke/neural-chat-7b-v3-1-awq @hf/thebloke/llamaguard-7b-awq
@hf/thebloke/deepseek-coder-6.7b-base-awq @hf/thebloke/deepseek-coder-6.7b-instruct-awq
@cf/deepseek-ai/deepseek-math-7b-instruct @cf/openchat/openchat-3.5-0106 @cf/tiiuae/falcon-7b-instruct
@cf/thebloke/discolm-german-7b-v1-awq @cf/qwen/qwen1.5-0.5b-chat @cf/qwen/qwen1.5-7b-chat-awq
@cf/qwen/qwen1.5-14b-chat-awq @cf/tinyllama/tinyllama-1.1b-chat-v1.0 @cf/qwen/qwen1.5-1.8b-chat
@hf/nexusflow/starling-lm-7b-beta @cf/fblgit/una-cybertron-7b-v2-bf16
"""
_REMOVED_IN_2026 = """
@hf/meta-llama/meta-llama-3-8b-instruct @cf/meta/llama-3-8b-instruct @cf/meta/llama-3-8b-instruct-awq
@cf/meta/llama-3.1-8b-instruct @cf/meta/llama-3.1-8b-instruct-awq @cf/meta/llama-3.1-70b-instruct
@cf/meta/llama-2-7b-chat-int8 @cf/meta/llama-2-7b-chat-fp16 @cf/mistral/mistral-7b-instruct-v0.1
@hf/mistral/mistral-7b-instruct-v0.2 @hf/google/gemma-7b-it @cf/google/gemma-3-12b-it
@hf/nousresearch/hermes-2-pro-mistral-7b @cf/microsoft/phi-2 @cf/defog/sqlcoder-7b-2 @cf/unum/uform-gen2-qwen-500m
@cf/facebook/bart-large-cnn
"""
# The day on which Cloudflare removed a model, YYYY-MM-DD, by the model's name.
REMOVED_MODELS: Mapping[str, str] = {
    **dict.fromkeys(_REMOVED_IN_2025.split(), "2025-10-01"),
    **dict.fromkeys(_REMOVED_IN_2026.split(), "2026-05-30"),
}


def check_request(body: RunBody, profile: Profile, model: str) -> None:
    """Raise the error with which Workers AI would refuse the request, if the profile is strict.

    Raises:
        ApiError: 400/5028 for a model that Cloudflare removed, 400/5023 for JSON mode in a stream.
    """
    if not profile.is_strict:
        return
    if removed_on := REMOVED_MODELS.get(model):
        raise ApiError(400, 5028, f"This model was deprecated on {removed_on}. Please use an alternative model.")
    if body.stream and body.json_schema is not None:
        raise ApiError(400, 5023, "JSON Schema mode is not supported with stream mode.")


def cut_call() -> ApiError:
    """Return the error for a forced tool call that `max_tokens` cut: 400/8006."""
    return ApiError(
        400,
        8006,
        "Invalid data for tool_choice: the reply reached max_tokens before the forced tool call was complete. Increase "
        "max_tokens.",
    )
