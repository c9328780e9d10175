"""LoRA adapters over HTTP: the field `lora`, an adapter's name as the model, and the lists of models."""

import pytest

from tailrace.v1 import inference_pb2 as pb
from tests.http_bridge.api.test_contract_errors import ACCOUNT, CHAT, CLOUDFLARES, ROUTES, ask, error_of
from tests.http_bridge.conftest import MODEL

SECOND = "@hf/other/second"


@pytest.fixture(autouse=True)
def adapters(servicer) -> None:
    del servicer.models[:]
    servicer.models += [
        pb.Model(name=MODEL, window=30, adapters=["legal", "medical"]),
        pb.Model(name=SECOND, window=40, adapters=["medical", MODEL]),
    ]


async def test_every_route_passes_the_adapter_on(bridge, servicer):
    for route in ROUTES:
        response = await ask(bridge, route, {"lora": "medical"})
        assert (route, response.status_code) == (route, 200)
        assert (route, servicer.requests[-1].model, servicer.requests[-1].adapter) == (route, MODEL, "medical")


async def test_raw_prompts_may_have_an_adapter(bridge, servicer):
    await bridge.ask({"prompt": "a", "raw": True, "lora": "legal"})
    assert (servicer.requests[-1].text, servicer.requests[-1].adapter) == ("a", "legal")


async def test_an_unknown_adapter_is_a_bad_field_that_names_the_adapters(bridge, servicer):
    sentence = f"'/lora' is not an adapter of the model {MODEL}: its adapters are legal, medical"
    for route in CLOUDFLARES:
        status, code, message = error_of(route, await ask(bridge, route, {"lora": "other"}))
        assert (route, status, code) == (route, 400, 5006)
        assert sentence in message
    assert not servicer.requests


async def test_openais_routes_take_an_adapter_as_the_model(bridge, servicer):
    for url, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/responses", {"input": "a"}),
    ):
        reply = (await bridge.ask({"model": "legal", **body}, url=url)).json()
        assert reply["model"] == "legal"
        assert (servicer.requests[-1].model, servicer.requests[-1].adapter) == (MODEL, "legal")
    # Several models have the first adapter. The name of the second one is also that of a model.
    for name, wanted in (("medical", (MODEL, "medical")), (MODEL, (MODEL, ""))):
        await bridge.ask({"model": name, **CHAT}, url="/v1/chat/completions")
        assert (servicer.requests[-1].model, servicer.requests[-1].adapter) == wanted


async def test_the_lists_of_models_name_the_adapters(bridge):
    listed = (await bridge.client.get("/v1/models")).json()["data"]
    assert [(entry["id"], entry.get("parent")) for entry in listed] == [
        (MODEL, None),
        ("legal", MODEL),
        ("medical", MODEL),
        (SECOND, None),
        ("medical", SECOND),
        (MODEL, SECOND),
    ]
    assert (await bridge.client.get("/v1/models/legal")).json()["parent"] == MODEL
    assert "parent" not in (await bridge.client.get(f"/v1/models/{MODEL}")).json()
    found = (await bridge.client.get(f"{ACCOUNT}/ai/models/search")).json()["result"][0]
    properties = {each["property_id"]: each["value"] for each in found["properties"]}
    assert (properties["lora"], properties["adapters"]) == ("true", ["legal", "medical"])
