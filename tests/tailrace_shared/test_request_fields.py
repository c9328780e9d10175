"""The table of sampling parameters against the contract, the engine, and the checks of both services."""

import dataclasses
import math
import re

import numpy
import pytest
from google.protobuf.descriptor import FieldDescriptor

from http_bridge.errors import ApiError
from http_bridge.protocol.schemas import Inputs
from inference_server.errors import InvalidField
from inference_server.generation import SamplingParams
from inference_server.grpc_api import validation
from inference_server.grpc_api.conversion import generation_request
from inference_server.text.prompt_encoder import Prompt
from tailrace.v1 import inference_pb2 as pb
from tailrace_shared.request_fields import SAMPLING_FIELDS, Range
from tests.http_bridge.conftest import BODIES
from tests.support.fakes import hosted_model
from tests.support.processes import ROOT

LIMITS = validation.Limits(max_messages=4, max_schema_depth=3)
INPUTS = Inputs(max_messages=4, max_schema_depth=3)
FIELDS = {field.name: field for field in SAMPLING_FIELDS}
CONTRACT = pb.Sampling.DESCRIPTOR.fields_by_name
LARGEST = {FieldDescriptor.TYPE_UINT32: 2**32 - 1, FieldDescriptor.TYPE_UINT64: 2**64 - 1}
# Each route with the name of the field of the table that has its range.
ROUTES = {"prompt": "rest", "messages": "rest", "chat": "openai", "completion": "openai"}


# Range.


@pytest.mark.parametrize(
    ("range_", "inside", "outside"),
    [
        (Range(), [-1e30, 0, math.inf], [math.nan]),
        (Range(minimum=1), [1, 1.5, math.inf], [0.999, -1, -math.inf, math.nan]),
        (Range(maximum=2), [2, -5, -math.inf], [2.001, math.inf, math.nan]),
        (Range(minimum=-2, maximum=2), [-2, 0, 2], [-2.001, 2.001, math.nan]),
        (Range(minimum=0, maximum=1, is_above=True), [5e-324, 1], [0, -0.0, -1, 1.001, math.nan]),
    ],
)
def test_range_contains_the_numbers_between_its_bounds(range_, inside, outside):
    assert [value in range_ for value in inside] == [True] * len(inside)
    assert [value in range_ for value in outside] == [False] * len(outside)


@pytest.mark.parametrize(
    ("range_", "text"),
    [
        (Range(), "any number"),
        (Range(minimum=1), "at least 1"),
        (Range(minimum=0.5, is_above=True), "above 0.5"),
        (Range(maximum=2), "at most 2"),
        (Range(minimum=0.001, maximum=1), "0.001 to 1"),
        (Range(minimum=0, maximum=2, is_above=True), "above 0, at most 2"),
        (Range(minimum=1, maximum=9_999_999_999), "1 to 9999999999"),
        (Range(minimum=-(2**63), maximum=2**63 - 1), "-9223372036854775808 to 9223372036854775807"),
    ],
)
def test_range_is_described_for_error_messages(range_, text):
    assert str(range_) == text


# The contract and the engine.


def test_table_has_the_sampling_parameters_of_the_contract():
    assert len(FIELDS) == len(SAMPLING_FIELDS)
    assert set(FIELDS) == set(CONTRACT) - {"stop", "logit_bias"}


@pytest.mark.parametrize("name", FIELDS)
def test_json_type_fits_the_type_of_the_contract(name):
    is_float = CONTRACT[name].type == FieldDescriptor.TYPE_FLOAT
    assert FIELDS[name].kind == ("number" if is_float else "integer")


@pytest.mark.parametrize("name", FIELDS)
def test_contract_documents_the_range_and_the_default(name):
    proto = (ROOT / "proto/tailrace/v1/inference.proto").read_text()
    message = proto.partition("message Sampling {")[2].partition("\n}")[0]
    comment = re.search(rf"((?:^ *//.*\n)+).* {name} = ", message, re.MULTILINE)[1]
    numbers = {float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", comment)}
    field = FIELDS[name]
    if name == "seed":  # its range is that of its type
        assert field.grpc == Range(minimum=0)
        return
    assert {bound for bound in (field.grpc.minimum, field.grpc.maximum) if bound is not None} <= numbers
    if default := re.match(r"-?[\d.]+", field.default):
        assert float(default[0]) in numbers


@pytest.mark.parametrize("name", FIELDS)
def test_engine_has_the_default_that_the_table_describes(name):
    field = FIELDS[name]
    in_engine = {each.name: each.default for each in dataclasses.fields(SamplingParams)}
    if not field.is_engine_default:
        assert in_engine.get(name, dataclasses.MISSING) is dataclasses.MISSING
        return
    number = re.match(r"-?[\d.]+", field.default)
    assert in_engine[name] == (None if number is None else float(number[0]))
    assert field.shown_default in (None, in_engine[name])


# The gRPC validation.


def grpc_values(name):
    """Return the values at the ends of the contract's range, and the nearest ones outside, as its type represents them."""
    range_, inside, outside = FIELDS[name].grpc, [], []
    is_float = CONTRACT[name].type == FieldDescriptor.TYPE_FLOAT
    largest = math.inf if is_float else LARGEST[CONTRACT[name].type]

    def next_to(value, direction):
        if not is_float:
            return value + direction
        return float(numpy.nextafter(numpy.float32(value), numpy.float32(direction * math.inf)))

    if range_.is_above:
        inside.append(next_to(range_.minimum, 1))
        outside.append(range_.minimum)
        # Above the minimum as a double, not as a float32.
        outside.append(math.nextafter(range_.minimum, math.inf))
    else:
        inside.append(range_.minimum)
        if is_float or range_.minimum > 0:
            outside.append(next_to(range_.minimum, -1))
    if range_.maximum is None:
        inside.append(largest)
    else:
        inside.append(range_.maximum)
        outside.append(next_to(range_.maximum, 1))
    return inside, outside + ([math.nan, math.inf, -math.inf] if is_float else [])


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in FIELDS for value in grpc_values(name)[0]])
def test_grpc_accepts_the_ends_of_a_range(name, value):
    request = pb.RunRequest(model="tiny", text="hi", sampling=pb.Sampling(**{name: value}))
    validation.check(request, LIMITS)
    given = generation_request(request, "id", Prompt([1, 2, 3], "none"), hosted_model())
    if name != "max_tokens":  # reduced to the model's sequence length
        assert getattr(given.sampling, name) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in FIELDS for value in grpc_values(name)[1]])
def test_grpc_refuses_values_just_outside_a_range(name, value):
    request = pb.RunRequest(model="tiny", text="hi", sampling=pb.Sampling(**{name: value}))
    with pytest.raises(InvalidField) as caught:
        validation.check(request, LIMITS)
    (violation,) = caught.value.violations
    assert (violation.field, violation.description) == (f"sampling.{name}", f"must be {FIELDS[name].grpc}")


# The REST routes.


def accepted_range(name, route):
    field = FIELDS[name]
    return field.openai if ROUTES[route] == "openai" and field.openai is not None else field.rest


@pytest.mark.parametrize("route", ROUTES)
def test_schemas_have_the_ranges_of_the_table(route):
    properties = getattr(INPUTS, route)["properties"]
    for name, field in FIELDS.items():
        range_ = accepted_range(name, route)
        lower = "exclusiveMinimum" if range_.is_above else "minimum"
        bounds = {lower: range_.minimum, "maximum": range_.maximum, "default": field.shown_default}
        schema = {key: value for key, value in properties[name].items() if key != "description"}
        expected = {"type": [field.kind, "null"]} | {key: value for key, value in bounds.items() if value is not None}
        assert schema == expected, name


def parse(route, **sampling):
    """Return the request of a body with these sampling parameters."""
    messages = [{"role": "user", "content": "hi"}]
    body = {"messages": messages} if route in ("messages", "chat") else {"prompt": "hi"}
    body |= {"model": "m", **sampling}
    if ROUTES[route] == "openai":
        return getattr(BODIES, route)(body)
    return BODIES.run(body, model="m")


def rest_values(name, route):
    """Return the values at the ends of the range, and the nearest ones outside with the message about each."""
    range_ = accepted_range(name, route)

    def next_to(value, direction):
        return value + direction if FIELDS[name].kind == "integer" else math.nextafter(value, direction * math.inf)

    if range_.is_above:
        inside = [next_to(range_.minimum, 1)]
        outside = [(range_.minimum, f"'/{name}' must be > {range_.minimum}")]
    else:
        inside = [range_.minimum]
        # On OpenAI's routes, 0 and -1 mean that these fields are unset.
        steps = -3 if ROUTES[route] == "openai" and name in ("max_tokens", "top_k") else -1
        outside = [(next_to(range_.minimum, steps), f"'/{name}' must be >= {range_.minimum}")]
    if range_.maximum is None:
        return [*inside, 2**32], outside
    return [*inside, range_.maximum], [*outside, (next_to(range_.maximum, 1), f"'/{name}' must be <= {range_.maximum}")]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", FIELDS)
def test_rest_accepts_the_ends_of_a_range_and_the_contract_too(name, route):
    for value in rest_values(name, route)[0]:
        given = parse(route, **{name: value}).sampling[name]
        assert given in FIELDS[name].grpc
        assert given <= LARGEST.get(CONTRACT[name].type, math.inf)
        if value in FIELDS[name].rest and name != "max_tokens":
            assert given == value


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", FIELDS)
def test_rest_refuses_values_just_outside_a_range(name, route):
    for value, message in rest_values(name, route)[1]:
        with pytest.raises(ApiError) as caught:
            parse(route, **{name: value})
        assert (caught.value.status, caught.value.code) == (400, 5006)
        assert message in caught.value.description
