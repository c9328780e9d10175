"""A request's trace through the real bridge and the real server, received by a real collector."""

from tests.http_bridge.conftest import running_bridge
from tests.support.observability.collector import collecting
from tests.support.servers import MODEL, running_server, write_catalog

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_requests_spans_continue_its_callers_trace(tiny_model, tmp_path, monkeypatch):
    catalog = write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2"))
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": True}
    with collecting(monkeypatch) as collector:
        async with running_server(catalog) as server, running_bridge(server.address) as bridge:
            url = f"/client/v4/accounts/acc/ai/run/{MODEL}"
            assert (await bridge.ask(body, url=url, headers={"traceparent": CALLER})).status_code == 200
            spans = await collector.named("POST", "Run", "chat", "queue", "prefill", "decode")
    assert {span.span.trace_id.hex() for span in spans} == {CALLER[3:35]}
    http, call, run, *phases = spans
    assert [span.span.parent_span_id for span in (http, call, run)] == [
        bytes.fromhex(CALLER[36:52]),
        http.span.span_id,
        call.span.span_id,
    ]
    assert {phase.span.parent_span_id for phase in phases} == {run.span.span_id}
    assert [span.kind for span in spans] == ["SERVER", "CLIENT", "SERVER", "INTERNAL", "INTERNAL", "INTERNAL"]
    assert [span.service for span in spans] == ["tailrace-bridge"] * 2 + ["tailrace-server"] * 4
    for earlier, later in zip(phases, phases[1:], strict=False):
        assert earlier.span.end_time_unix_nano == later.span.start_time_unix_nano
    assert run.span.start_time_unix_nano <= phases[0].span.start_time_unix_nano
    assert phases[-1].span.end_time_unix_nano <= run.span.end_time_unix_nano
    assert not any(span.is_error for span in spans)
