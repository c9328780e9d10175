"""Converts sampling parameters and grammars to vLLM's, and log probabilities from vLLM's. Does not import vLLM.

The penalties have the same meaning in vLLM and in the native engine. The repetition penalty covers prompt and reply,
and frequency and presence penalty cover the reply. Both engines return log probabilities of the unchanged logits, and
apply bias, penalties, temperature, min_p and top_k, and top_p in this order. docs/vllm.md lists the differences.
"""

import json
import math
import re
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from inference_server.errors import FieldViolation, InvalidField
from inference_server.generation import Candidate, GenerationRequest, Grammar, SamplingParams, TokenLogprob
from inference_server.text.tools.call_grammar import JSON_OPTIONS
from tailrace_shared.request_fields import SAMPLING_FIELDS

_MAX_TEMPERATURE = 2.0
# The version of llguidance that vLLM pins cannot limit white space, so the grammar allows none in JSON documents.
_JSON_OPTIONS = {"whitespace_flexible": False}
# Without this header, vLLM parses a grammar without a line `start:` as a llama.cpp grammar.
_LARK_HEADER = "%llguidance {}\n"


def check_sampling(params: SamplingParams) -> None:
    """Raise InvalidField for values that inference.proto allows and vLLM does not support."""
    if params.temperature > _MAX_TEMPERATURE:
        raise InvalidField(
            FieldViolation(
                "sampling.temperature", f"must be at most {_MAX_TEMPERATURE:g} with this model's engine, vLLM"
            )
        )


def sampling_arguments(request: GenerationRequest, end_ids: Set[int]) -> dict[str, Any]:
    """Return the keyword arguments of vLLM's SamplingParams. `end_ids`: tokens that end a reply, within the vocabulary."""
    params = request.sampling
    return {
        # vLLM has the same names.
        **{field.name: getattr(params, field.name) for field in SAMPLING_FIELDS if field.name != "max_tokens"},
        "temperature": 0.0 if params.is_greedy else params.temperature,
        "top_k": params.top_k or 0,
        "logit_bias": None
        if (bias := params.logit_bias) is None
        else dict(zip(bias.token_ids, bias.values, strict=True)),
        "logprobs": params.logprobs,
        "max_tokens": request.max_tokens,
        "ignore_eos": params.ignore_eos,
        "stop_token_ids": [] if params.ignore_eos else sorted(end_ids),
        "detokenize": False,  # text/detokenizer.py applies the stop strings
    }


def grammar_arguments(grammar: Grammar) -> dict[str, Any]:
    """Return the keyword arguments of vLLM's StructuredOutputsParams."""
    if grammar.kind == "lark":
        grammar = replace(grammar, text=grammar.text.replace(json.dumps(JSON_OPTIONS), json.dumps(_JSON_OPTIONS)))
    if grammar.before:
        return {"grammar": _LARK_HEADER + _after_thoughts(grammar)}
    if grammar.kind == "lark":
        return {"grammar": _LARK_HEADER + grammar.text}
    return {"json": _limited(grammar.text)}


def _after_thoughts(grammar: Grammar) -> str:
    """Return a Lark grammar that accepts thoughts, followed by a text that `grammar` accepts."""
    if grammar.kind == "lark":
        reply = re.sub(r"(?m)^start:", "after_thoughts:", grammar.text, count=1)
    else:
        reply = f"after_thoughts: %json {_limited(grammar.text)}"
    return f"start: thought_part after_thoughts\n{grammar.before}\n{reply}"


def _limited(schema: str) -> str:
    return json.dumps({**json.loads(schema), "x-guidance": _JSON_OPTIONS})


def token_logprob(token_id: int, found: Mapping[int, Any], num_top: int) -> TokenLogprob:
    """Convert vLLM's log probabilities of one position.

    A token that a grammar forbids has a log probability of -infinity, which JSON cannot represent, and is left out.

    Args:
        token_id: The chosen token.
        found: vLLM's Logprob objects by token id, with `logprob` and `rank` (from 1).
        num_top: Largest number of likeliest tokens to return.
    """
    likely = ((item.rank, candidate, item.logprob) for candidate, item in found.items() if math.isfinite(item.logprob))
    top = tuple(Candidate(candidate, logprob) for rank, candidate, logprob in sorted(likely) if rank <= num_top)[
        :num_top
    ]
    return TokenLogprob(Candidate(token_id, found[token_id].logprob), top)
