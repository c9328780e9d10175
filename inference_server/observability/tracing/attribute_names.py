"""Names of what the server's spans hold, all in one place: OpenTelemetry's conventions for generative AI are in development.

github.com/open-telemetry/semantic-conventions-genai for gen_ai.*; for the others,
opentelemetry.io/docs/specs/semconv.
"""

RPC_SYSTEM = "rpc.system.name"
RPC_METHOD = "rpc.method"
RPC_STATUS = "rpc.response.status_code"
ERROR_TYPE = "error.type"

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_STOP_SEQUENCES = "gen_ai.request.stop_sequences"
# By the name that a sampling parameter has in the contract.
REQUEST_SAMPLING = {
    name: f"gen_ai.request.{name}"
    for name in ("max_tokens", "temperature", "top_p", "top_k", "seed", "frequency_penalty", "presence_penalty")
}
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_MODEL = "gen_ai.response.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"  # seconds
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
# The text of prompt and reply, as JSON; only where it was asked for.
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"

# No convention has names for these. Of the phases, gen_ai.usage.* would be added up with those of the run.
TURN = "tailrace.turn"  # how many were admitted since the request came, itself included
PROMPT_TOKENS = "tailrace.prompt_tokens"
CACHED_PROMPT_TOKENS = "tailrace.cached_tokens"
COMPLETION_TOKENS = "tailrace.completion_tokens"
QUEUE, PREFILL, DECODE = "queue", "prefill", "decode"
