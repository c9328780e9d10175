"""Plans a GPU's memory: checks that the catalog's models fit, and computes each engine's KV cache size in tokens.

Does not call torch: every figure comes from a model's configuration or from the caller. All sizes are in bytes, unless
a name states another unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from inference_server.precision import Precision
from tailrace_shared.config_errors import ConfigurationError

GIB = 2**30
MIB = 2**20

# Memory of a CUDA context with the code of torch's kernels. A running server's free memory excludes it, so a plan from
# the total memory of a GPU subtracts it.
CONTEXT_BYTES = 512 * MIB

# Share of the free memory for fragmentation and for the allocator's rounding to 2 MiB.
_MARGIN = 0.02
# Memory of each engine for recorded CUDA graphs, cuBLAS workspaces and partial results of attention.
_ENGINE_BYTES = 384 * MIB
# Bytes per int8 weight of the widest product: the dequantised weights in float32 (4), then their 16-bit copy (2). During
# loading, the same memory suffices to quantise a matrix: two 16-bit copies (2 + 2), the int8 codes (1) and a mask (1).
_DEQUANTIZED_BYTES = 6
# Bytes per logit: a 16-bit value, a float32 value, the outputs of the recorded graphs, and the copies and sorted
# indices of sampling.
_LOGIT_BYTES = 32
# A change that saves less than this share of the missing memory is not recommended.
_WORTH_SAVING = 0.2
# Blocks of a cache that no sequence owns (kv_cache.NUM_SCRATCH_BLOCKS).
_SCRATCH_BLOCKS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """Sizes of a decoder, as numbers of elements or of layers, not in bytes.

    Attributes:
        linear_weights: Weights of the linear layers, without the output head. These are quantised.
        linear_rows: Output features of the same layers together. Each has one float32 scale in int8.
        other_weights: All other parameters: embeddings, output head, norms, biases.
        widest_linear: Weights of the widest product: a layer's gate and up projections together.
        hidden_size: Width of the residual stream.
        intermediate_size: Largest width of a linear layer's input or output.
        heads_width: Number of query heads times their width.
        kv_width: Number of elements of one token's keys and values in one layer, together.
        num_layers: Number of layers with keys and values.
        vocab_size: Width of the logits.
    """

    linear_weights: int
    linear_rows: int
    other_weights: int
    widest_linear: int
    hidden_size: int
    intermediate_size: int
    heads_width: int
    kv_width: int
    num_layers: int
    vocab_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDemand:
    """An engine of this process on the GPU, as the catalog and the settings describe it.

    Attributes:
        name: Names of its catalog entries, for messages.
        can_fuse: True if its layers can run as operators of gpu/ops.py (see paths.has_fused_layers).
        sizes: Sizes of the model.
        precision: Precision in use on the device.
        max_len: Longest sequence, prompt and reply together, in tokens.
        max_running_seqs: Number of slots.
        chunk_tokens: Largest number of prompt tokens in a forward pass.
        kv_cache_tokens: Wanted size of the KV cache in tokens; None: as much as fits.
        block_size: Tokens of a block of the KV cache.
    """

    name: str
    can_fuse: bool
    sizes: ModelSizes
    precision: Precision
    max_len: int
    max_running_seqs: int
    chunk_tokens: int
    kv_cache_tokens: int | None
    block_size: int

    @property
    def weight_bytes(self) -> int:
        """Return the memory of the weights in the precision in use."""
        sizes, width = self.sizes, self._activation_bytes
        if self.precision == "bitsandbytes-int8":
            return sizes.linear_weights + 4 * sizes.linear_rows + width * sizes.other_weights
        return width * (sizes.linear_weights + sizes.other_weights)

    @property
    def working_bytes(self) -> int:
        """Return the memory of a forward pass, of sampling and of the recorded graphs, besides weights and KV cache."""
        logits = self.max_running_seqs * self.sizes.vocab_size * _LOGIT_BYTES
        dequantized = _DEQUANTIZED_BYTES * self.sizes.widest_linear if self.precision == "bitsandbytes-int8" else 0
        return self.prompt_bytes + logits + dequantized + _ENGINE_BYTES

    @property
    def prompt_bytes(self) -> int:
        """Return the part of `working_bytes` that grows with the tokens of a forward pass: the activations of a layer."""
        sizes = self.sizes
        # Three tensors of each width: the residual stream, a norm and a product; queries, their rotation and the
        # attention's output; gate and up together, and their product.
        row = 3 * (sizes.hidden_size + sizes.heads_width + sizes.intermediate_size) + sizes.kv_width
        return (self.chunk_tokens + self.max_running_seqs) * row * self._activation_bytes

    @property
    def token_bytes(self) -> int:
        """Return the memory of one token's keys and values in all layers."""
        return self.sizes.num_layers * self.sizes.kv_width * self._activation_bytes

    @property
    def min_blocks(self) -> int:
        """Return the smallest number of blocks: enough for max_len tokens, or max_blocks if kv_cache_tokens is set."""
        return self.max_blocks if self.kv_cache_tokens else -(-self.max_len // self.block_size)

    @property
    def max_blocks(self) -> int:
        """Return the largest useful number of blocks: max_len tokens in every slot, or kv_cache_tokens if fewer."""
        useful = -(-self.max_len // self.block_size) * self.max_running_seqs
        wanted = useful if self.kv_cache_tokens is None else self.kv_cache_tokens // self.block_size
        return min(useful, wanted)

    def cache_bytes(self, num_blocks: int) -> int:
        """Return the memory of a KV cache of `num_blocks` blocks, including the scratch block."""
        return (num_blocks + _SCRATCH_BLOCKS) * self.block_size * self.token_bytes

    @property
    def _activation_bytes(self) -> int:
        return 4 if self.precision == "float32" else 2


@dataclass(frozen=True, slots=True)
class Needs:
    """The smallest memory with which the engines can run, in bytes, divided into its parts."""

    weights: int
    caches: int
    working: int
    margin: int

    @property
    def total(self) -> int:
        """Return the sum of all parts."""
        return self.weights + self.caches + self.working + self.margin


def least_needs(free_bytes: int, demands: Sequence[EngineDemand], *, has_weights: bool = False) -> Needs:
    """Return the memory without which the engines cannot run.

    Args:
        free_bytes: Free memory of the GPU; the margin is a share of it.
        demands: The engines.
        has_weights: True if the weights are loaded, so that `free_bytes` does not include them.
    """
    return Needs(
        weights=0 if has_weights else sum(demand.weight_bytes for demand in demands),
        caches=sum(demand.cache_bytes(demand.min_blocks) for demand in demands),
        working=sum(demand.working_bytes for demand in demands),
        margin=int(_MARGIN * free_bytes),
    )


def plan(free_bytes: int, demands: Sequence[EngineDemand], *, has_weights: bool = False) -> list[int]:
    """Divide the memory that weights and working memory leave among the KV caches.

    Each cache gets a share in proportion to its useful maximum.

    Args:
        free_bytes: Free memory of the GPU.
        demands: The engines.
        has_weights: True if the weights are loaded, so that `free_bytes` does not include them.

    Returns:
        The size of each engine's KV cache in tokens: whole blocks, at least `min_blocks` of them.

    Raises:
        ConfigurationError: The engines do not fit; the message contains the figures and the remedies.
    """
    needs = least_needs(free_bytes, demands, has_weights=has_weights)
    if needs.total > free_bytes:
        raise ConfigurationError(_refusal(free_bytes, needs, demands))
    available = free_bytes - (needs.total - needs.caches)
    return [
        (share // (demand.block_size * demand.token_bytes) - _SCRATCH_BLOCKS) * demand.block_size
        for demand, share in zip(demands, _shares(available, demands), strict=True)
    ]


def _shares(available: int, demands: Sequence[EngineDemand]) -> list[int]:
    """Return the bytes of each KV cache: in proportion to the useful maximum, and never less than the minimum."""
    least = [demand.cache_bytes(demand.min_blocks) for demand in demands]
    most = [demand.cache_bytes(demand.max_blocks) for demand in demands]
    shares = list(least)
    rest = list(range(len(demands)))
    while rest:
        wanted = sum(most[index] for index in rest)
        divided = min(available, wanted)
        short = [index for index in rest if most[index] * divided < least[index] * wanted]
        if not short:
            for index in rest:
                shares[index] = most[index] * divided // wanted
            break
        # These engines get their minimum. The others divide the rest of the memory.
        available -= sum(least[index] for index in short)
        rest = [index for index in rest if index not in short]
    return shares


def _refusal(free_bytes: int, needs: Needs, demands: Sequence[EngineDemand]) -> str:
    """Return the sentence for engines that do not fit: the figures, then the remedies."""
    weights = ", ".join(f"{demand.name} {_gib(demand.weight_bytes)}" for demand in demands)
    parts = [
        *([f"{_gib(needs.weights)} for weights ({weights})"] if needs.weights else []),
        f"{_gib(needs.caches)} for the smallest KV caches ({', '.join(map(_cache, demands))})",
        f"{_gib(needs.working + needs.margin)} for activations, CUDA graphs and fragmentation",
    ]
    subject = "the models need" if needs.weights else "besides their weights, the models need"
    return (
        f"{subject} {_gib(needs.total)} of GPU memory, but {_gib(free_bytes)} are free: "
        f"{', '.join(parts)}; {', or '.join(_remedies(free_bytes, needs, demands))}"
    )


def _cache(demand: EngineDemand) -> str:
    return f"{demand.min_blocks * demand.block_size} tokens of {demand.token_bytes / MIB:.3g} MiB"


def _remedies(free_bytes: int, needs: Needs, demands: Sequence[EngineDemand]) -> list[str]:
    """Return the changes that reduce the memory, as imperative clauses."""
    shortage = needs.total - free_bytes
    remedies = ["remove an entry from the catalog"] if len(demands) > 1 else []
    wide = [demand for demand in demands if demand.precision != "bitsandbytes-int8"]
    if wide and needs.weights:
        largest = max(wide, key=lambda demand: demand.weight_bytes)
        saved = largest.weight_bytes - replace(largest, precision="bitsandbytes-int8").weight_bytes
        if saved > _WORTH_SAVING * shortage:
            remedies.append(f'set precision = "bitsandbytes-int8" for {largest.name} (saves at least {_gib(saved)})')
    if needs.caches > shortage:
        is_wanted = any(demand.kv_cache_tokens is not None for demand in demands)
        setting = "or unset TAILRACE_KV_CACHE_TOKENS" if is_wanted else "context_length or sequence_length"
        remedies.append(f"lower {setting}")
    if sum(demand.prompt_bytes for demand in demands) > shortage:
        remedies.append("lower TAILRACE_PREFILL_IDLE_TOKENS")
    return remedies or ["use a GPU with more memory"]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
