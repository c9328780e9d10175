"""`Embed` over a real connection: vectors, limits, refusals, metrics, and the model list. On a tiny BERT and a tiny Llama."""

import json

import grpc
import numpy as np
import pytest

from tailrace.v1 import inference_pb2 as pb
from tailrace_shared.config_errors import ConfigurationError
from tests.support.engines import until
from tests.support.models.tiny_encoders import WIDTH, write_encoder
from tests.support.observability.collector import collecting
from tests.support.servers import MODEL, chat, details, running_server, write_catalog

VECTORS = "@cf/test/vectors"
TEXTS = ["where is new york", "the program", "an answer comes word by word"]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "bert", "bert")


@pytest.fixture
def catalog(tiny_model, encoder_folder, tmp_path):
    path = write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2"))
    path.write_text(
        f"""[[models]]
name = "{VECTORS}"
description = "for tests"
task = "embedding"
source = {{ path = {json.dumps(str(encoder_folder))} }}
precision = "float32"
context_length = 50
"""
        + path.read_text()
    )
    return path


@pytest.fixture
async def running(catalog):
    async with running_server(catalog, max_running_seqs=2) as running:
        yield running


def embed(*texts, **options) -> pb.EmbedRequest:
    return pb.EmbedRequest(model=VECTORS, texts=texts or TEXTS, **options)


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    found = details(caught.value)
    violations = (
        [violation.field for violation in found["BadRequest"].field_violations] if "BadRequest" in found else []
    )
    return caught.value.code().name, found["ErrorInfo"].reason, violations


async def test_each_text_has_a_vector_of_length_1(running):
    call = running.stub.Embed(embed(), metadata=(("x-request-id", "abc"),))
    reply = await call
    vectors = np.array([list(embedding.values) for embedding in reply.embeddings])
    assert vectors.shape == (3, WIDTH) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert reply.prompt_tokens > 3
    assert dict(await call.initial_metadata())["x-request-id"] == "abc"


async def test_many_texts_have_their_vectors_in_order(running):
    texts = [TEXTS[number % 3] for number in range(100)]
    found = np.array([list(embedding.values) for embedding in (await running.stub.Embed(embed(*texts))).embeddings])
    assert found.shape == (100, WIDTH)
    assert np.allclose(found, found[[number % 3 for number in range(100)]], atol=1e-5)


async def test_pooling_and_dimensions_of_the_request_are_used(running):
    own, mean = [(await running.stub.Embed(embed(pooling=pooling))).embeddings[0].values for pooling in (0, 1)]
    assert not np.allclose(own, mean, atol=0.01)
    assert np.allclose(own, (await running.stub.Embed(embed(pooling=pb.POOLING_CLS))).embeddings[0].values)
    short = (await running.stub.Embed(embed(dimensions=8))).embeddings[0].values
    assert len(short) == 8 and np.isclose(np.linalg.norm(short), 1)


async def test_a_long_text_is_cut_or_refused(running):
    long = "new " * 200
    reply = await running.stub.Embed(embed(long))
    assert reply.prompt_tokens == 50
    refused = await refusal(running.stub.Embed(embed(long, refuse_long_texts=True)))
    assert refused == ("INVALID_ARGUMENT", "PROMPT_TOO_LONG", [])


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"texts": []}, ["texts"]),
        ({"texts": ["a"] * 2049}, ["texts"]),
        ({"texts": ["a", ""]}, ["texts[1]"]),
        ({"pooling": 9}, ["pooling"]),
        ({"dimensions": 0}, ["dimensions"]),
        ({"dimensions": WIDTH + 1}, ["dimensions"]),
        ({"account": "x" * 257}, ["account"]),
        ({"model": "x" * 100_000}, ["model"]),
    ],
)
async def test_wrong_fields_are_named(running, changes, fields):
    request = pb.EmbedRequest(**{"model": VECTORS, "texts": TEXTS, **changes})
    assert await refusal(running.stub.Embed(request)) == ("INVALID_ARGUMENT", "INVALID_FIELD", fields)


async def test_each_method_refuses_models_of_the_other_task(running):
    embedding = running.stub.Embed(pb.EmbedRequest(model=MODEL, texts=TEXTS))
    assert await refusal(embedding) == ("INVALID_ARGUMENT", "WRONG_TASK", [])
    run = chat()
    run.model = VECTORS
    assert await refusal(running.stub.Run(run).read()) == ("INVALID_ARGUMENT", "WRONG_TASK", [])
    count = running.stub.CountTokens(pb.CountTokensRequest(model=VECTORS, text="a"))
    assert await refusal(count) == ("INVALID_ARGUMENT", "WRONG_TASK", [])
    unknown = running.stub.Embed(pb.EmbedRequest(model="@cf/none/such", texts=TEXTS))
    assert await refusal(unknown) == ("NOT_FOUND", "UNKNOWN_MODEL", [])


async def test_the_model_list_has_task_and_dimensions(running):
    vectors, text = (await running.stub.ListModels(pb.ListModelsRequest())).models
    assert (vectors.name, vectors.task, vectors.dimensions) == (VECTORS, pb.TASK_TEXT_EMBEDDING, WIDTH)
    assert (vectors.context_length, vectors.sequence_length, vectors.precision) == (50, 0, "float32")
    assert (text.name, text.task, text.dimensions) == (MODEL, pb.TASK_TEXT_GENERATION, 0)


async def test_requests_are_counted_with_their_texts_and_tokens(running):
    reply = await running.stub.Embed(embed(account="acc"))
    await refusal(running.stub.Embed(embed(dimensions=0)))
    value = running.server.servicer.metrics.registry.get_sample_value
    model = {"model": VECTORS}
    assert value("tailrace_requests_accepted_total", model) == 1
    assert value("tailrace_requests_ended_total", {**model, "end": "completed"}) == 1
    # A refusal is counted after its status was sent.
    await until(lambda: value("tailrace_requests_refused_total", {**model, "reason": "INVALID_FIELD"}) == 1)
    assert value("tailrace_embedded_texts_total", model) == 3
    assert value("tailrace_prompt_tokens_total", {**model, "account": "acc"}) == reply.prompt_tokens


async def test_a_request_and_its_time_in_the_queue_are_spans(catalog, monkeypatch):
    with collecting(monkeypatch) as collector:
        async with running_server(catalog) as running:
            reply = await running.stub.Embed(embed(), metadata=(("x-request-id", "abc"),))
            request, queue = await collector.named("embeddings", "queue")
    assert request.span.name == f"embeddings {VECTORS}" and queue.span.parent_span_id == request.span.span_id
    assert request.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "tailrace.v1.InferenceService/Embed",
        "rpc.response.status_code": "OK",
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "tailrace",
        "gen_ai.request.model": VECTORS,
        "gen_ai.response.id": "abc",
        "gen_ai.response.model": VECTORS,
        "gen_ai.usage.input_tokens": reply.prompt_tokens,
        "tailrace.num_texts": 3,
    }


async def test_a_stopping_server_refuses_texts(running):
    await running.server.drain(1)
    assert await refusal(running.stub.Embed(embed())) == ("UNAVAILABLE", "SERVER_STOPPING", [])


async def test_an_optional_model_without_weights_is_left_out(catalog, tmp_path, caplog):
    broken = tmp_path / "empty"
    broken.mkdir()
    text = catalog.read_text()
    first = text.split("source = ")[1].split("\n")[0]
    catalog.write_text(text.replace(first, f"{{ path = {json.dumps(str(broken))} }}\noptional = true", 1))
    async with running_server(catalog) as running:
        models = (await running.stub.ListModels(pb.ListModelsRequest())).models
    assert [model.name for model in models] == [MODEL]
    assert f"{VECTORS} is left out, because it is optional" in caplog.text


async def test_an_embedding_model_without_its_task_is_refused_with_the_remedy(encoder_folder, tmp_path):
    catalog = write_catalog(tmp_path / "catalog.toml", encoder_folder)
    with pytest.raises(ConfigurationError, match='set task = "embedding"'):
        async with running_server(catalog):
            pass
