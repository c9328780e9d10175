"""Names of what the bridge's spans hold, all in one place: OpenTelemetry's conventions for generative AI are in development.

github.com/open-telemetry/semantic-conventions-genai for gen_ai.*; for the others, opentelemetry.io/docs/specs/semconv.
"""

HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
URL_PATH = "url.path"
URL_SCHEME = "url.scheme"

RPC_SYSTEM = "rpc.system.name"
RPC_METHOD = "rpc.method"
RPC_STATUS = "rpc.response.status_code"
ERROR_TYPE = "error.type"

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_STREAM = "gen_ai.request.stream"
REQUEST_STOP_SEQUENCES = "gen_ai.request.stop_sequences"
# By the name that a sampling parameter has in the contract.
REQUEST_SAMPLING = {
    name: f"gen_ai.request.{name}"
    for name in ("max_tokens", "temperature", "top_p", "top_k", "seed", "frequency_penalty", "presence_penalty")
}
RESPONSE_ID = "gen_ai.response.id"
FINISH_REASONS = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"  # seconds
# No gen_ai.usage.*: the server's span has it, and what shows traces adds up all that it finds.

# No convention has a name for this event.
FIRST_TOKEN = "tailrace.first_token"  # noqa: S105 - a token of text
