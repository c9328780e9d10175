"""The announced limits in full, on the default model: 2048 in and 1800 out, 3072 in and 2500 out."""

import pytest

from inference_server.errors import PromptTooLong
from inference_server.generation import FinishReason
from inference_server.serving.catalog import read_catalog
from inference_server.settings.models import DEFAULT_CATALOG
from tests.exact.reference import CORPUS
from tests.http_bridge.conftest import running_bridge
from tests.support.engines import collect, hosting, request
from tests.support.servers import running_server

LIMITS = {"@cf/meta/llama-2-7b-chat-int8": (2048, 1800), "@cf/meta/llama-2-7b-chat-fp16": (3072, 2500)}


@pytest.mark.exact
async def test_int8_accepts_2048_prompt_tokens_and_refuses_2049():
    model = "@cf/meta/llama-2-7b-chat-int8"
    url = f"/client/v4/accounts/local/ai/run/{model}"
    async with running_server(DEFAULT_CATALOG, max_running_seqs=2) as server, running_bridge(server.address) as bridge:
        hosted = server.server.servicer.models[model]
        words = hosted.prompts.encode_text(CORPUS.read_text())
        passes = []
        prefill = hosted.engine.runner.prefill
        hosted.engine.runner.prefill = lambda pieces: passes.append(pieces) or prefill(pieces)

        async def ask(length: int):
            text = hosted.prompts.decoder.decode(words[:length])
            assert len(hosted.prompts.encode_text(text)) == length
            body = {"prompt": text, "raw": True, "max_tokens": 1}
            return await bridge.client.post(url, json=body, timeout=100)

        refused = await ask(2049)
        assert (refused.status_code, refused.json()["errors"][0]["code"]) == (413, 5021)
        assert not passes
        accepted = await ask(2048)
        assert accepted.json()["result"]["usage"]["prompt_tokens"] == 2048
        assert passes


@pytest.mark.exact
@pytest.mark.parametrize("name", LIMITS)
async def test_a_model_has_exactly_the_announced_limits(name, report):
    (entry,) = (entry for entry in read_catalog(DEFAULT_CATALOG) if entry.name == name)
    context_length, sequence_length = LIMITS[name]
    async with hosting(entry, max_running_seqs=1) as models:
        model = models[name]
        prompt = model.prompts.encode_text(CORPUS.read_text() * 2)[:context_length]
        with pytest.raises(PromptTooLong):
            model.check_length(context_length + 1)
        model.check_length(context_length)
        reply = await collect(model, request(prompt, max_tokens=model.max_tokens(context_length, 10**6)))
    assert reply.completed.finish_reason is FinishReason.LENGTH
    assert reply.completed.usage.completion_tokens == sequence_length
    assert reply.completed.usage.prompt_tokens == context_length
    report(f"{name}: {context_length} in, {sequence_length} out, {reply.completed.timings}")
