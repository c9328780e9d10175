"""Names of the attributes of spans, which both services use.

The conventions for generative AI are still in development, so the names are defined in one place. Sources:
github.com/open-telemetry/semantic-conventions-genai for gen_ai.*; opentelemetry.io/docs/specs/semconv for the others.
"""

from tailrace_shared.request_fields import SAMPLING_FIELDS

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
# Maps a sampling parameter's name in inference.proto to its span attribute. Contains only parameters for which
# OpenTelemetry's GenAI conventions define an attribute.
REQUEST_SAMPLING = {field.name: f"gen_ai.request.{field.name}" for field in SAMPLING_FIELDS if field.is_traced}
DIMENSIONS = "gen_ai.embeddings.dimension.count"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_MODEL = "gen_ai.response.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"  # value in seconds
# Only the server's span has gen_ai.usage.*: trace viewers add up all values of a trace.
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
# Text of prompt and reply as JSON; recorded only if OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT allows it.
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"

# No convention covers the following attributes. The spans of phases do not use gen_ai.usage.*, which viewers would
# count twice.
ADMISSION_POSITION = "tailrace.admission_position"  # admissions since the request arrived, including its own
NUM_TEXTS = "tailrace.num_texts"  # texts of an embedding request
PROMPT_TOKENS = "tailrace.prompt_tokens"
CACHED_PROMPT_TOKENS = "tailrace.cached_tokens"
COMPLETION_TOKENS = "tailrace.completion_tokens"
QUEUE, PREFILL, DECODE = "queue", "prefill", "decode"
FIRST_TOKEN = "tailrace.first_token"  # noqa: S105 - a token of text
