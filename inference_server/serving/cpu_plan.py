"""Plans the machine's memory for models on a CPU: refuses models that cannot fit, and limits the KV caches.

The figures come from configuration files and GGUF headers (weights/shape.py), before any weights are loaded. For models
in transformers' format on a hub, they come before any weights are downloaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inference_server.attention.kv_cache import BLOCK_SIZE
from inference_server.attention.rope import RopeChoice
from inference_server.engine.spec import EngineKey
from inference_server.machine import available_memory_bytes
from inference_server.serving.automatic import model_path
from inference_server.serving.catalog import CatalogEntry
from inference_server.serving.engine_groups import window
from inference_server.settings.server import Settings
from inference_server.weights.packed_cache import packed_folder
from inference_server.weights.shape import ModelShape, read_config_file, read_shape
from inference_server.weights.source import Weights
from inference_server.weights.store import stored
from tailrace_shared.config_errors import ConfigurationError

_GIB, _MIB = 2**30, 2**20
# Share of the free memory for weights and KV caches. The rest is for activations, the process and other programs.
_USABLE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuDemand:
    """The memory that one engine on a CPU needs.

    Attributes:
        name: Names of the engine's catalog entries, for messages.
        weight_bytes: Memory of the weights in the engine's precision.
        int4_bytes: Memory that the weights would take in int4.
        load_bytes: Peak memory for the weights while they are loaded; `weight_bytes` if they are already packed.
        token_bytes: Memory of one token's keys and values in all layers, including those of the draft model.
        max_len: Longest sequence, prompt and reply together, in tokens.
        max_running_seqs: Number of slots.
    """

    name: str
    weight_bytes: int
    int4_bytes: int
    load_bytes: int
    token_bytes: int
    max_len: int
    max_running_seqs: int

    @property
    def least_tokens(self) -> int:
        """Tokens of the smallest KV cache: one sequence of length `max_len`, in whole blocks."""
        return -(-self.max_len // BLOCK_SIZE) * BLOCK_SIZE

    @property
    def most_tokens(self) -> int:
        """Tokens of the largest useful KV cache: a sequence of length `max_len` in every slot."""
        return self.least_tokens * self.max_running_seqs


def plan_caches(groups: Mapping[EngineKey, Sequence[CatalogEntry]], settings: Settings) -> dict[EngineKey, int]:
    """Return the size of each engine's KV cache in tokens; empty if the free memory suffices for all slots.

    Args:
        groups: The entries of each engine.
        settings: The server's settings.

    Raises:
        ConfigurationError: The models do not fit, or a configuration is not available.
    """
    demands, free = cpu_demands(groups, settings), available_memory_bytes()
    check_memory(free, list(demands.values()))
    return limited_caches(free, demands)


def cpu_demands(
    groups: Mapping[EngineKey, Sequence[CatalogEntry]], settings: Settings, *, may_fetch: bool = True
) -> dict[EngineKey, CpuDemand]:
    """Return the memory demand of each native engine. Models without the usual configuration keys are left out.

    Args:
        groups: The entries of each engine.
        settings: The server's settings.
        may_fetch: True to download missing configurations; False to leave out their models.

    Raises:
        ConfigurationError: A configuration is missing or damaged.
    """
    demands = {}
    for key, group in groups.items():
        if key.engine != "tailrace":
            continue
        shape = _shape(key.weights, settings, may_fetch)
        if shape is not None:
            draft = None if key.draft is None else _shape(key.draft, settings, may_fetch)
            demands[key] = _demand(key, group, [shape, draft] if draft else [shape], settings)
    return demands


def _shape(weights: Weights, settings: Settings, may_fetch: bool) -> ModelShape | None:
    path = model_path(weights, settings.cache_dir, may_fetch=may_fetch)
    return None if path is None or not path.exists() else read_shape(path)


def _is_packed(key: EngineKey, settings: Settings) -> bool:
    """Return True if an earlier start stored the packed weights of the model."""
    source = stored(key.weights, settings.cache_dir)
    if source is None or not source.is_dir():
        return False
    rope = RopeChoice(key.rope, key.num_tokens).variant(read_config_file(source))
    return packed_folder(
        settings.cache_dir, source, key.precision, batch_invariant=settings.batch_invariant, rope=rope
    ).is_dir()


def check_memory(free_bytes: int, demands: Sequence[CpuDemand]) -> None:
    """Check that the weights and one longest sequence of each engine fit into the free memory.

    Also checks that each model can be loaded while the models before it are in memory.

    Args:
        free_bytes: Memory that this process can still allocate.
        demands: The engines.

    Raises:
        ConfigurationError: They do not fit; the message contains the figures and the possible remedies.
    """
    _check_loading(free_bytes, demands)
    weights = sum(demand.weight_bytes for demand in demands)
    caches = sum(demand.least_tokens * demand.token_bytes for demand in demands)
    if weights + caches <= free_bytes:
        return
    listed = ", ".join(f"{demand.name} {_gib(demand.weight_bytes)}" for demand in demands)
    tokens = ", ".join(f"{demand.least_tokens} tokens of {demand.token_bytes / _MIB:.3g} MiB" for demand in demands)
    remedies = "; ".join(_remedies(weights + caches - free_bytes, caches, demands))
    raise ConfigurationError(
        f"the models need {_gib(weights + caches)} of memory, but {_gib(free_bytes)} are free: {_gib(weights)} for weights "
        f"({listed}), {_gib(caches)} for one longest sequence of each ({tokens}); {remedies}"
    )


def _check_loading(free_bytes: int, demands: Sequence[CpuDemand]) -> None:
    """Check that each model can be loaded while the ones before it are in memory. Raises ConfigurationError."""
    loaded = 0
    for demand in demands:
        # If not even the packed weights fit, `check_memory` raises a clearer error.
        if loaded + demand.weight_bytes <= free_bytes < loaded + demand.load_bytes:
            raise ConfigurationError(
                f"loading {demand.name} for the first time needs {_gib(loaded + demand.load_bytes)} of memory, but "
                f"{_gib(free_bytes)} are free: its weights are {_gib(demand.weight_bytes)} only after they are packed; serve a "
                "GGUF file of the model, or use a machine with more memory for the first start and keep its TAILRACE_CACHE_DIR"
            )
        loaded += demand.weight_bytes


def limited_caches(free_bytes: int, demands: Mapping[EngineKey, CpuDemand]) -> dict[EngineKey, int]:
    """Return the size of each KV cache in tokens; empty if the free memory suffices for every slot of all engines.

    Args:
        free_bytes: Memory that this process can still allocate, before the weights are loaded.
        demands: The engines, which fit into memory (see `check_memory`).
    """
    left = _USABLE * free_bytes - sum(demand.weight_bytes for demand in demands.values())
    wanted = sum(demand.most_tokens * demand.token_bytes for demand in demands.values())
    if wanted <= left:
        return {}
    share = max(0.0, left) / wanted
    return {key: max(demand.least_tokens, int(share * demand.most_tokens)) for key, demand in demands.items()}


def _demand(
    key: EngineKey, group: Sequence[CatalogEntry], shapes: Sequence[ModelShape], settings: Settings
) -> CpuDemand:
    """Return the demand of an engine. `shapes`: the sizes of its model, and of its draft model if there is one."""
    weights = [shape.weight_bytes(key.precision, "cpu") for shape in shapes]
    loads = [shape.load_bytes(key.precision) for shape in shapes]
    if _is_packed(key, settings):
        loads[0] = weights[0]  # the draft model may not have been packed yet
    return CpuDemand(
        name=" + ".join(entry.name for entry in group),
        weight_bytes=sum(weights),
        int4_bytes=sum(shape.weight_bytes("int4", "cpu") for shape in shapes),
        load_bytes=sum(loads),
        token_bytes=sum(shape.token_bytes(key.precision) for shape in shapes),
        max_len=max(window(entry, shapes[0].window(entry.rope)) for entry in group),
        max_running_seqs=settings.max_running_seqs,
    )


def _remedies(shortage: int, caches: int, demands: Sequence[CpuDemand]) -> list[str]:
    """Return changes that reduce the memory, as imperative clauses.

    Args:
        shortage: Missing memory in bytes.
        caches: Memory of the smallest KV caches in bytes.
        demands: The engines.
    """
    remedies = ["serve fewer models"] if len(demands) > 1 else []
    if sum(demand.weight_bytes - demand.int4_bytes for demand in demands) >= shortage:
        remedies.append("set TAILRACE_PRECISION=int4")
    if caches > shortage:
        remedies.append("lower TAILRACE_MAX_CONTEXT")
    return remedies or ["serve a smaller model, or use a machine with more memory"]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"
