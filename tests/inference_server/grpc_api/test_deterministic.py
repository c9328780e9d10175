"""In deterministic mode, equal requests get equal messages: alone, in a batch, after a restart, with more threads."""

import asyncio
import json

import pytest
import torch

from tailrace.v1 import inference_pb2 as pb
from tailrace_shared.request_fields import DETERMINISTIC_SEED
from tests.inference_server.grpc_api.recordings.test_servicer import all_of
from tests.support.models.tiny_encoders import write_encoder
from tests.support.servers import MODEL, Running, running_server, write_catalog

VECTORS = "@cf/test/vectors"
# Prompts of different lengths, one of which repeats itself, so that draft tokens are tried.
PROMPTS = ["x", "where is new york " * 3, "one two three four " * 12, "a longer text with many different words " * 8]
TEXTS = ["where", "the program " * 3, "an answer comes word by word", "x y z " * 9]
# The instruction set of the kernels, and the precision. Without kernels, torch's operations compute everything.
PATHS = {"kernels": ("", "bitsandbytes-int8"), "torch": ("none", "float32")}


def requests() -> list[pb.RunRequest]:
    options = pb.LogprobOptions(top=2)
    return [
        pb.RunRequest(model=MODEL, text=text, sampling=pb.Sampling(max_tokens=24), logprobs=options) for text in PROMPTS
    ]


async def replies_of(running: Running, *, together: bool) -> list[list[pb.RunResponse]]:
    if together:
        return list(await asyncio.gather(*(all_of(running.stub, request) for request in requests())))
    return [await all_of(running.stub, request) for request in requests()]


@pytest.fixture(params=PATHS)
def catalog(request, tiny_model, tmp_path, monkeypatch):
    features, precision = PATHS[request.param]
    monkeypatch.setenv("TAILRACE_CPU_FEATURES", features)
    return write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2-heads-of-32"), precision=precision)


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


async def test_replies_are_equal_alone_in_a_batch_and_after_a_restart_with_more_threads(catalog, set_threads):
    set_threads(1)
    async with running_server(catalog, deterministic=True, max_running_seqs=4) as running:
        alone = await replies_of(running, together=False)
        assert await replies_of(running, together=True) == alone
    set_threads(2)
    async with running_server(catalog, deterministic=True, max_running_seqs=3) as running:
        assert await replies_of(running, together=True) == alone
    assert {messages[0].started.seed for messages in alone} == {DETERMINISTIC_SEED}
    assert {messages[-1].completed.usage.cached_tokens for messages in alone} == {0}


async def test_vectors_are_equal_alone_and_in_a_batch_with_more_threads(tiny_model, tmp_path, set_threads):
    encoder = write_encoder(tmp_path / "bert", "bert")
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(
        f'[[models]]\nname = "{VECTORS}"\ndescription = ""\ntask = "embedding"\nprecision = "float32"\n'
        f"source = {{ path = {json.dumps(str(encoder))} }}\ncontext_length = 50\n"
    )
    set_threads(1)
    async with running_server(catalog, deterministic=True) as running:
        singles = [await running.stub.Embed(pb.EmbedRequest(model=VECTORS, texts=[text])) for text in TEXTS]
    set_threads(2)
    async with running_server(catalog, deterministic=True) as running:
        together = await running.stub.Embed(pb.EmbedRequest(model=VECTORS, texts=TEXTS))
    assert list(together.embeddings) == [single.embeddings[0] for single in singles]
