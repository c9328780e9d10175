"""Computes the ratios of medians that the project's claims rest on. Does no I/O."""

from benchmarks.report.figures import Document, median

# Ratios of one peer's figure to another's: title, case, figure, both peers.
_OVER_PEERS = [
    ("1 stream, int4, tokens/s: Tailrace to llama.cpp", "short-1", "tokens_per_s", "tailrace-int4", "llama.cpp"),
    ("1 stream, int8, tokens/s: Tailrace to bitsandbytes", "short-1", "tokens_per_s", "tailrace-int8", "generate-int8"),
    ("8 streams, 16-bit, tokens/s: Tailrace to vLLM", "short-8", "tokens_per_s", "tailrace-16bit", "vllm"),
    ("32 streams, 16-bit, tokens/s: Tailrace to vLLM", "short-32", "tokens_per_s", "tailrace-16bit", "vllm"),
    ("64 streams, 16-bit, tokens/s: Tailrace to vLLM", "short-64", "tokens_per_s", "tailrace-16bit", "vllm"),
    ("8 streams, 16-bit, p99 ITL: Tailrace to vLLM", "short-8", "itl_p99_ms", "tailrace-16bit", "vllm"),
    ("32 streams, 16-bit, p99 ITL: Tailrace to vLLM", "short-32", "itl_p99_ms", "tailrace-16bit", "vllm"),
    ("64 streams, 16-bit, p99 ITL: Tailrace to vLLM", "short-64", "itl_p99_ms", "tailrace-16bit", "vllm"),
    ("TTFT of one short prompt, 16-bit: Tailrace to vLLM", "burst-1", "ttft_p50_ms", "tailrace-16bit", "vllm"),
    ("TTFT of eight at once, p50, 16-bit: Tailrace to vLLM", "burst-8", "ttft_p50_ms", "tailrace-16bit", "vllm"),
    ("TTFT of eight at once, largest, 16-bit: Tailrace to vLLM", "burst-8", "ttft_max_ms", "tailrace-16bit", "vllm"),
    ("TTFT of 1,500 tokens, 16-bit: Tailrace to vLLM", "long-1", "ttft_p50_ms", "tailrace-16bit", "vllm"),
    ("TTFT of 1,500 tokens, int4: Tailrace to llama.cpp", "long-1", "ttft_p50_ms", "tailrace-int4", "llama.cpp"),
]
# Peers whose weights differ from Tailrace's are compared only if both were measured alternately in the same rounds.
_TOGETHER = [
    (f"{title}, {weights}: Tailrace to vLLM", case, figure, f"tailrace-{weights}", "vllm")
    for title, case, figure in (
        ("TTFT of one short prompt", "burst-1", "ttft_p50_ms"),
        ("TTFT of eight at once, p50", "burst-8", "ttft_p50_ms"),
        ("TTFT of eight at once, largest", "burst-8", "ttft_max_ms"),
        ("TTFT of 1,500 tokens", "long-1", "ttft_p50_ms"),
        ("8 streams, tokens/s", "short-8", "tokens_per_s"),
        ("32 streams, tokens/s", "short-32", "tokens_per_s"),
    )
    for weights in ("int4", "int8")
]
# Ratios of two figures of one peer: title, peer, case and figure of numerator and denominator.
_WITHIN = [
    ("Tailrace, 16-bit, TTFT: second turn to first", "tailrace-16bit", "turns/second_ttft_ms", "turns/first_ttft_ms"),
    ("Tailrace, int4, TTFT: second turn to first", "tailrace-int4", "turns/second_ttft_ms", "turns/first_ttft_ms"),
    (
        "Tailrace, 16-bit, a long prompt arrives: p99 ITL to median",
        "tailrace-16bit",
        "arrival/itl_p99_ms",
        "arrival/itl_p50_ms",
    ),
    (
        "Tailrace, 16-bit, tokens/s: 64 streams to 32",
        "tailrace-16bit",
        "short-64/tokens_per_s",
        "short-32/tokens_per_s",
    ),
    ("Tailrace, int4, tokens/s: 8 streams to 1", "tailrace-int4", "short-8/tokens_per_s", "short-1/tokens_per_s"),
    ("Tailrace, 16-bit, tokens/s: 8 streams to 1", "tailrace-16bit", "short-8/tokens_per_s", "short-1/tokens_per_s"),
    ("Tailrace, int4, tokens/s: 64 streams to 32", "tailrace-int4", "short-64/tokens_per_s", "short-32/tokens_per_s"),
]


def lines(document: Document) -> str:
    """Return a Markdown list of the ratios whose figures were both measured; "" if there are none."""
    pairs = [
        (title, median(document, ours, case, figure), median(document, theirs, case, figure))
        for title, case, figure, ours, theirs in [*_OVER_PEERS, *(_TOGETHER if document.get("together") else [])]
    ]
    for title, peer, above, below in _WITHIN:
        one, other = (median(document, peer, *figure.split("/")) for figure in (above, below))
        pairs.append((title, one, other))
    start, rival = (median(document, peer, "start", "ready_s") for peer in ("tailrace-int4", "llama.cpp"))
    imports = document["imports"].get("seconds")
    bound = rival + imports["median"] if rival is not None and imports else None
    pairs.append(("Start to ready: Tailrace int4 to llama.cpp and `import torch, transformers` together", start, bound))
    listed = [f"- {title}: {one / other:.2f}" for title, one, other in pairs if one is not None and other]
    return "Ratios of medians:\n\n" + "\n".join(listed) + "\n" if listed else ""
