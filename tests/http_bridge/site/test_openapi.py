"""The examples of the API reference."""

import json

import jsonschema_rs
import pytest

from http_bridge.protocol.schemas import Inputs
from http_bridge.routes.table import description

PATHS = description(Inputs(max_messages=1024, max_schema_depth=32))["paths"]
BODIES = {path: methods["post"] for path, methods in PATHS.items() if "post" in methods}


@pytest.mark.parametrize("path", BODIES)
def test_each_body_has_an_example_that_its_schema_accepts(path):
    content = BODIES[path]["requestBody"]["content"]["application/json"]
    jsonschema_rs.validator_for(content["schema"]).validate(content["example"])


@pytest.mark.parametrize("path", [path for path in BODIES if "embeddings" not in path])
def test_each_stream_has_an_example_of_events(path):
    stream = BODIES[path]["responses"]["200"]["content"]["text/event-stream"]["example"]
    events = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]
    assert all(json.loads(event) for event in events if event != "[DONE]") and len(events) > 2
