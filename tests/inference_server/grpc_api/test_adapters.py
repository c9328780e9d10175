"""LoRA adapters over gRPC: replies, the list of models, and errors, with a server that reads a catalog."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from transformers import AutoConfig

from tailrace.v1 import inference_pb2 as pb
from tests.support.models.adapters import linear_shapes, write_adapter
from tests.support.servers import MODEL, Running, chat, details, running_server


@pytest.fixture
async def running(tiny_model: Callable[[str], Path], tmp_path: Path) -> AsyncIterator[Running]:
    folder = tiny_model("llama-3")
    write_adapter(tmp_path / "adapters" / "legal", linear_shapes(AutoConfig.from_pretrained(folder)))
    entry = f'source = {{ path = "{folder}" }}\nprecision = "float32"\ncontext_length = 64\nsequence_length = 32\n'
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(
        f'[[models]]\nname = "{MODEL}"\n{entry}adapters_folder = "adapters"\n\n[[models]]\nname = "plain"\n{entry}'
    )
    async with running_server(catalog) as server:
        yield server


async def test_a_request_selects_an_adapter_by_its_name(running: Running) -> None:
    (listed, plain) = (await running.stub.ListModels(pb.ListModelsRequest())).models
    assert (list(listed.adapters), list(plain.adapters)) == (["legal"], [])
    texts = {}
    for name in ("", "legal"):
        request = chat(temperature=0.0, max_tokens=8)
        request.adapter = name
        texts[name] = "".join([event.delta.text async for event in running.stub.Run(request)])
    assert texts["legal"] != texts[""]
    for name, model, reason in (
        ("other", MODEL, "UNKNOWN_ADAPTER"),
        ("legal", "plain", "UNKNOWN_ADAPTER"),
        ("x" * 257, MODEL, "INVALID_FIELD"),
    ):
        request = chat(max_tokens=1)
        request.adapter, request.model = name, model
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await running.stub.Run(request).read()
        assert details(error.value)["ErrorInfo"].reason == reason
