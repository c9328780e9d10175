"""Thousands of requests generated from the API's description: no answer is a 5xx or missing in the description."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from http_bridge.protocol.schemas import Inputs
from http_bridge.routes.table import description as describe
from tests.clients.conftest import generated
from tests.e2e.stack import Stack
from tests.support.servers import MODEL, write_catalog

pytestmark = pytest.mark.clients

CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
PATIENT = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
DEFAULT_MODEL = "@cf/meta/llama-2-7b-chat-int8"
# Requests for each operation: over 5,000 and 500 in total.
MANY, FEW = 200, 6

description = schemathesis.openapi.from_dict(describe(Inputs(max_messages=1024, max_schema_depth=32)))


@pytest.fixture(scope="session")
def instant(tiny_model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Start the real bridge, gRPC and scheduler over a tiny model that answers with at most 8 tokens."""
    folder = tmp_path_factory.mktemp("instant")
    catalog = write_catalog(folder / "tiny.toml", tiny_model("llama-2"), context=512, sequence=8)
    stack = Stack(folder, catalog.read_text())
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


def ask(case: schemathesis.Case, stack: Stack, model: str) -> None:
    """Send a request, three of four to an existing model, and check the answer against the description."""
    if generated.total() % 4:
        if "model" in (case.path_parameters or {}):
            case.path_parameters["model"] = model
        if "cf-consn-model-id" in (case.headers or {}):
            case.headers["cf-consn-model-id"] = model
        if isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = model
    generated["the tiny model" if model == MODEL else "the default model"] += 1
    response = case.call(base_url=f"http://{stack.http_address}", timeout=60)
    case.validate_response(response, checks=CHECKS)


@description.parametrize()
@settings(max_examples=MANY, deadline=None, suppress_health_check=PATIENT, derandomize=True)
@pytest.mark.timeout(600)
def test_a_generated_request_to_an_instant_model_gets_a_described_answer(
    case: schemathesis.Case, instant: Stack
) -> None:
    ask(case, instant, MODEL)


# Without the description's own examples: some have no limit of 8 tokens, and a reply of this model would take minutes.
@description.parametrize()
@settings(max_examples=FEW, deadline=None, suppress_health_check=PATIENT, derandomize=True, phases=[Phase.generate])
@pytest.mark.timeout(600)
def test_a_generated_request_to_the_default_model_gets_a_described_answer(
    case: schemathesis.Case, stack: Stack
) -> None:
    if isinstance(case.body, dict):
        for fields in (case.body, case.body.get("input"), case.body.get("inputs")):
            if isinstance(fields, dict):
                fields["max_tokens"] = 8
    ask(case, stack, DEFAULT_MODEL)
