"""Names of span attributes, which dashboards and trace viewers rely on."""

from tailrace_shared.tracing import attribute_names


def test_attribute_names_are_stable():
    names = {value for name, value in vars(attribute_names).items() if name.isupper() and isinstance(value, str)}
    assert names | set(attribute_names.REQUEST_SAMPLING.values()) == {
        *("http.request.method", "http.route", "http.response.status_code", "url.path", "url.scheme"),
        *("rpc.system.name", "rpc.method", "rpc.response.status_code", "error.type"),
        *("gen_ai.operation.name", "gen_ai.provider.name"),
        *("gen_ai.request.model", "gen_ai.request.stream", "gen_ai.request.stop_sequences"),
        *("gen_ai.request.max_tokens", "gen_ai.request.temperature", "gen_ai.request.top_p", "gen_ai.request.top_k"),
        *("gen_ai.request.seed", "gen_ai.request.frequency_penalty", "gen_ai.request.presence_penalty"),
        *("gen_ai.response.id", "gen_ai.response.model", "gen_ai.response.finish_reasons"),
        *("gen_ai.response.time_to_first_chunk", "gen_ai.input.messages", "gen_ai.output.messages"),
        *("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.usage.cache_read.input_tokens"),
        *("queue", "prefill", "decode", "tailrace.first_token"),
        *("tailrace.admission_position", "tailrace.prompt_tokens", "tailrace.cached_tokens"),
        *("tailrace.completion_tokens", "tailrace.num_texts", "gen_ai.embeddings.dimension.count"),
    }
