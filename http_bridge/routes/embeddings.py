"""The route of OpenAI's embeddings, and the endpoints of routes that run models of every task. table.py has the table."""

from starlette.types import ASGIApp

from http_bridge.api.base import RequestParser
from http_bridge.api.embeddings.job import MixedParser
from http_bridge.api.embeddings.openai import OpenAiEmbeddingParser
from http_bridge.api.openai.errors import OpenAiErrors
from http_bridge.endpoints.embed import AnyTaskEndpoint, EmbedEndpoint
from http_bridge.protocol.embedding_schemas import OPENAI_INPUT, OPENAI_OUTPUT, RUN_INPUT, RUN_OUTPUT
from http_bridge.protocol.schemas import Inputs, Schema
from http_bridge.routes.spec import MakeApp, RouteSpec, Services


def any_task(parser: RequestParser, embedding: MixedParser) -> MakeApp:
    """Return a factory for an endpoint that generates or embeds text, as the model's task requires."""
    return lambda services: services.tracing.around(
        AnyTaskEndpoint(services.settings, services.bodies, parser, embedding)
    )


def embeddings_route(base: str) -> RouteSpec:
    """Return the route of OpenAI's embeddings under the path `base`."""
    return RouteSpec(
        label="embeddings",
        path=f"{base}/embeddings",
        endpoint=_embed,
        methods=("POST",),
        errors=OpenAiErrors(),
        summary="Embed texts",
        request_schema=lambda inputs: OPENAI_INPUT,
        reply_schema=OPENAI_OUTPUT,
    )


def run_input(inputs: Inputs) -> Schema:
    """Return the schema of the bodies of /ai/run for models of every task."""
    return {"type": "object", "anyOf": [*inputs.run["anyOf"], *RUN_INPUT["anyOf"]]}


def any_reply(envelope: Schema) -> Schema:
    """Return the schema of a reply of /ai/run in Cloudflare's envelope, for models of every task."""
    result = {"anyOf": [envelope["properties"]["result"], RUN_OUTPUT]}
    return {**envelope, "properties": {**envelope["properties"], "result": result}}


def _embed(services: Services) -> ASGIApp:
    return services.tracing.around(EmbedEndpoint(services.settings, services.bodies, OpenAiEmbeddingParser()))
