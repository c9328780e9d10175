"""Lists the peers, in the order of the tables of results. Peers with the same weight format are rivals.

Tailrace's int4 is compared with llama.cpp, 16-bit with vLLM and transformers, and int8 with stock bitsandbytes.
"""

from benchmarks.instruction_sets import InstructionSet
from benchmarks.peers.base import Model, Peer
from benchmarks.peers.in_process import BareEngine, Transformers
from benchmarks.peers.instant import Instant
from benchmarks.peers.llama_cpp import LlamaCpp
from benchmarks.peers.tailrace import BatchInvariant, OneSlot, Pair, Tailrace, WithShare
from benchmarks.peers.vllm import Vllm

_INT8 = "@cf/meta/llama-2-7b-chat-int8"
_BITS_16 = "@cf/meta/llama-2-7b-chat-fp16"
_INT4 = "@cf/huggingfacetb/smollm2-135m-instruct"


def all_peers(model: Model, limit: InstructionSet | None = None) -> list[Peer]:
    """Return every peer, not yet installed or started. `limit`: the best instruction set that they may use."""
    peers = _peers(model)
    if limit is not None:
        for peer in peers:
            peer.limit_to(limit)
    return peers


def _peers(model: Model) -> list[Peer]:
    return [
        Tailrace(model, "tailrace-int4", "Tailrace", "int4", _INT4),
        LlamaCpp(model),
        WithShare(model, "tailrace-16bit", "Tailrace", "16-bit", _BITS_16),
        Vllm(model),
        Transformers(model, "continuous-16bit", "transformers continuous batching", "16-bit", "continuous", "bfloat16"),
        Transformers(model, "generate-16bit", "transformers `generate`", "16-bit", "generate", "bfloat16"),
        Tailrace(model, "tailrace-int8", "Tailrace", "int8", _INT8),
        Transformers(model, "generate-int8", "bitsandbytes in `generate`", "int8", "generate", "bitsandbytes-int8"),
        BatchInvariant(model, "invariant-int4", "Tailrace, batch_invariant", "int4", _INT4),
        BatchInvariant(model, "invariant-16bit", "Tailrace, batch_invariant", "16-bit", _BITS_16),
        BareEngine(model, "engine-16bit", "Tailrace's engine in process", "16-bit", _BITS_16),
        Instant(model),
        Pair(model, "tailrace-pair-int4", "Tailrace, two engines", "int4", _INT4),
        Pair(model, "tailrace-pair-16bit", "Tailrace, two engines", "16-bit", _BITS_16),
        OneSlot(model, "tailrace-one-slot", "Tailrace with one slot", "int4", _INT4),
    ]
