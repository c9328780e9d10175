"""Embeddings through Cloudflare's and OpenAI's Python SDKs and a Worker, unmodified but for address and token."""

import cloudflare
import openai
import pytest
import requests

from tests.clients.conftest import ACCOUNT
from tests.clients.node_programs import install, serving
from tests.e2e.stack import OTHER_SERVER
from tests.support.processes import ROOT, free_address

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(bool(OTHER_SERVER), reason="the other server's catalog has no embedding model"),
]

MODEL = "@cf/baai/bge-small-en-v1.5"
TEXTS = ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose in March."]


def similarity(first, second):
    return sum(a * b for a, b in zip(first, second, strict=True))


def test_cloudflares_sdk_embeds_texts(api):
    client = cloudflare.Cloudflare(api_token="any-token", base_url=api, max_retries=0)
    result = client.ai.run(MODEL, account_id=ACCOUNT, text=TEXTS)
    assert result["shape"] == [3, 384]
    cat, kitten, rates = result["data"]
    assert similarity(cat, kitten) > similarity(cat, rates) + 0.3


@pytest.mark.parametrize("base", ["account", "v1"])
def test_openais_sdk_embeds_texts_in_base64_and_as_numbers(api, stack, base):
    url = f"{api}/accounts/{ACCOUNT}/ai/v1" if base == "account" else f"http://{stack.http_address}/v1"
    client = openai.OpenAI(api_key="any-token", base_url=url, max_retries=0)
    packed = client.embeddings.create(model=MODEL, input=TEXTS)
    numbers = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    assert [entry.index for entry in packed.data] == [0, 1, 2]
    for first, second in zip(packed.data, numbers.data, strict=True):
        assert first.embedding == pytest.approx(second.embedding, abs=1e-7)
    assert packed.usage.total_tokens > 10
    short = client.embeddings.create(model=MODEL, input="hello", dimensions=64)
    assert len(short.data[0].embedding) == 64
    with pytest.raises(openai.BadRequestError, match="token ids"):
        client.embeddings.create(model=MODEL, input=[1, 2, 3])


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return install(ROOT / "examples" / "worker", tmp_path_factory.mktemp("workers") / "worker")


@pytest.mark.parametrize(
    ("question", "note"), [("When is breakfast?", "Breakfast"), ("May I bring my poodle?", "Dogs")]
)
def test_a_worker_answers_from_the_nearest_note(examples, stack, question, note):
    address = free_address()
    command = ["node", "run-workerd.mjs", "rag.js"]
    with serving(command, examples, address, LISTEN=address, BRIDGE=f"http://{stack.http_address}") as url:
        reply = requests.get(url, params={"question": question}, timeout=60).json()
    assert reply["answer"] and reply["sources"][0]["text"].startswith(note)
