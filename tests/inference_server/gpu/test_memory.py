"""The arithmetic of a GPU's memory, with both shipped catalogs on cards of every common size. Nothing is loaded."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from inference_server.gpu.memory import CONTEXT_BYTES, GIB, EngineDemand, least_needs, plan
from inference_server.serving.catalog import read_catalog
from inference_server.serving.engine_groups import group_entries, window
from inference_server.settings.models import DEFAULT_CATALOG
from inference_server.settings.server import Settings
from inference_server.weights.sizes import model_sizes
from tailrace_shared.config_errors import ConfigurationError

# The memory that torch reports for a card of this size in GB: an RTX 4060, RTX 3060, T4, RTX 4090, RTX 5090, L40S, H100
# and H200. Of two cards of one size, it is that of the card with less, but for 24 GB (see L4).
CARDS = {8: 7.6, 12: 11.6, 16: 14.5, 24: 23.5, 32: 31.3, 48: 44.4, 80: 79.1, 141: 139.8}
L4 = 22.0  # an L4 or A10G also has 24 GB, and a part of it holds the codes that correct errors

LLAMA_2_7B = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=4096,
)
SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)
LLAMA_CATALOG = DEFAULT_CATALOG.with_name("llama-2.toml")


@pytest.fixture(scope="module")
def sizes():
    return {DEFAULT_CATALOG: model_sizes(SMOLLM2_135M), LLAMA_CATALOG: model_sizes(LLAMA_2_7B)}


@pytest.fixture
def demands(sizes):
    """Returns the demands of a catalog's engines on a GPU, by their precision."""

    def of(catalog: Path = LLAMA_CATALOG, **limits: int) -> dict[str, EngineDemand]:
        model_window = {DEFAULT_CATALOG: SMOLLM2_135M, LLAMA_CATALOG: LLAMA_2_7B}[catalog].max_position_embeddings
        entries = [replace(entry, **limits) for entry in read_catalog(catalog)]
        return {
            key.precision: EngineDemand(
                name=" + ".join(entry.name.rpartition("/")[2] for entry in group),
                can_fuse=True,
                sizes=sizes[catalog],
                precision=key.precision,
                max_len=max(window(entry, model_window) for entry in group),
                max_running_seqs=Settings().max_running_seqs,
                chunk_tokens=Settings().prefill_tokens("cuda").idle,
                kv_cache_tokens=None,
                block_size=32,
            )
            for key, group in group_entries(entries, torch.device("cuda")).items()
        }

    return of


def free(gib: float) -> int:
    """Return the free bytes of an unused card whose whole memory is `gib` GiB."""
    return int(gib * GIB) - CONTEXT_BYTES


def tokens(gib: float, demands: dict[str, EngineDemand]) -> list[int] | None:
    """Return the tokens of each KV cache on a card, or None if the engines do not fit."""
    try:
        return plan(free(gib), list(demands.values()))
    except ConfigurationError:
        return None


def only(precision: str, demands: dict[str, EngineDemand]) -> dict[str, EngineDemand]:
    return {precision: demands[precision]}


def test_parameters_are_those_of_the_models(sizes):
    parameters = {path.name: one.linear_weights + one.other_weights for path, one in sizes.items()}
    assert parameters == {"llama-2.toml": 6_738_415_616, "default.toml": 134_515_008}


@pytest.mark.parametrize(
    ("card", "expected"),
    # Tokens of the int8 engine, and of the 16-bit engine that both other entries share.
    [(8, [99776, 158368]), (12, [170400, 270432]), (16, [221600, 351680])]
    + [(card, [64 * 121 * 32, 64 * 6144]) for card in (24, 32, 48, 80, 141)],
)
def test_the_default_catalog_fits_every_card(demands, card, expected):
    assert tokens(CARDS[card], demands(DEFAULT_CATALOG)) == expected


@pytest.mark.parametrize(
    ("card", "both", "int8", "fp16"),
    [
        (8, None, None, None),
        (12, None, [6400], None),
        (16, None, [12224], None),
        (24, None, [30304], [18976]),
        (32, [9120, 9664], [45952], [34656]),
        (48, [21888, 23168], [72256], [60928]),
        (80, [55744, 58976], [141888], [130592]),
        (141, [114944, 121600], [247808], [252416]),
    ],
)
def test_llama_2_fits_cards_of_32_gb_and_single_entries_smaller_ones(demands, card, both, int8, fp16):
    needs = demands()
    assert tokens(CARDS[card], needs) == both
    assert tokens(CARDS[card], only("bitsandbytes-int8", needs)) == int8
    assert tokens(CARDS[card], only("float16", needs)) == fp16


def test_figures_of_the_llama_2_catalog_are_those_in_its_comments(demands):
    needs = demands()
    comments = " ".join(line.removeprefix("# ") for line in LLAMA_CATALOG.read_text().splitlines() if line[:1] == "#")
    least = least_needs(free(CARDS[32]), list(needs.values()))
    for phrase in (
        f"{needs['bitsandbytes-int8'].weight_bytes / GIB:.1f} GiB and {needs['float16'].weight_bytes / GIB:.1f} GiB",
        f"{least.caches / GIB:.1f} GiB of KV cache",
        f"{(least.working + least.margin) / GIB:.1f} GiB for activations",
        f"{(least.total + CONTEXT_BYTES) / GIB:.0f} GiB in all",
    ):
        assert phrase in comments, phrase


def test_llama_2_fits_24_gb_with_shorter_limits(demands):
    assert tokens(CARDS[24], demands(context_length=1024, sequence_length=512)) == [1568, 1568]
    assert tokens(L4, demands(context_length=1024, sequence_length=512)) is None


def test_the_refusal_has_the_figures_and_the_remedies(demands):
    with pytest.raises(ConfigurationError) as caught:
        plan(free(CARDS[24]), list(demands().values()))
    assert str(caught.value) == (
        "the models need 25.4 GiB of GPU memory, but 23.0 GiB are free: 19.1 GiB for weights (llama-2-7b-chat-int8 6.5 GiB, "
        "llama-2-7b-chat-fp16 12.6 GiB), 3.9 GiB for the smallest KV caches (3872 tokens of 0.5 MiB, 4096 tokens of 0.5 MiB), "
        "2.4 GiB for activations, CUDA graphs and fragmentation; remove an entry from the catalog, or set precision = "
        '"bitsandbytes-int8" for llama-2-7b-chat-fp16 (saves at least 6.0 GiB), or lower context_length or sequence_length'
    )


def test_a_single_int8_model_that_does_not_fit_needs_a_larger_gpu(demands):
    with pytest.raises(ConfigurationError, match="fragmentation; use a GPU with more memory$"):
        plan(free(CARDS[8]), list(only("bitsandbytes-int8", demands()).values()))


def test_a_wanted_cache_is_kept_or_refused(demands):
    wanted = [replace(demand, kv_cache_tokens=8000) for demand in demands().values()]
    assert plan(free(CARDS[48]), wanted) == [8000, 8000]
    with pytest.raises(ConfigurationError, match="lower or unset TAILRACE_KV_CACHE_TOKENS"):
        plan(free(CARDS[24]), wanted)


def test_an_engine_with_a_small_share_keeps_one_longest_sequence(demands):
    few, many = demands().values()
    few = replace(few, max_running_seqs=1)
    granted = plan(free(CARDS[32]), [few, replace(many, max_running_seqs=1024)])
    assert granted[0] == few.min_blocks * 32
    assert granted[1] > 2 * granted[0]


@pytest.mark.parametrize("gib", [26.0, 31.3, 44.4, 60.0])
def test_the_plan_uses_all_memory_and_not_more(demands, gib):
    engines = list(demands().values())
    needs = least_needs(free(gib), engines)
    used = [
        engine.cache_bytes(granted // 32) for engine, granted in zip(engines, plan(free(gib), engines), strict=True)
    ]
    rest = free(gib) - (needs.total - needs.caches) - sum(used)
    assert 0 <= rest < 2 * 32 * engines[0].token_bytes


def test_loaded_weights_are_not_counted_twice(demands):
    engines = list(demands().values())
    weights = sum(engine.weight_bytes for engine in engines)
    assert plan(free(CARDS[32]) - weights, engines, has_weights=True) > plan(free(CARDS[32]), engines)
    with pytest.raises(ConfigurationError, match="^besides their weights, the models need"):
        plan(free(CARDS[24]) - weights, engines, has_weights=True)
