"""Small random models of the text architectures of transformers, for the table in docs/architectures.md."""

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.support.models.tiny_models import VOCAB_SIZE

# Sizes by every name that configurations use. Each configuration gets the sizes whose names it has.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 128),
    **dict.fromkeys(
        ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "shared_expert_intermediate_size"), 128
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 32,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 512),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k"), 2),
    **dict.fromkeys(
        ("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts", "moe_num_shared_experts"), 1
    ),
    "moe_intermediate_size": 64,
    "kv_channels": 32,
    "sliding_window": 24,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 32),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("dropout", "resid_pdrop", "attn_pdrop", "embd_pdrop", "attention_dropout", "hidden_dropout"), 0.0),
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Latent attention has keys for every head. Here, head_dim is the width of the part that rotates.
_LATENT = {"num_key_value_heads": 4, "head_dim": 16}
_OTHERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu"), _LATENT),
    "granitemoehybrid": {"layer_types": ["attention"] * 3, "mamba_n_heads": 16},
    "persimmon": {"partial_rotary_factor": 0.5},
}

# The architectures that this server runs. Their names are transformers' `model_type`.
SERVED = tuple(
    """
    afmoe apertus arcee aria_text axk1 biogpt bitnet cohere cohere2 cohere2_moe cwm deepseek_v2 deepseek_v3 dots1
    ernie4_5 ernie4_5_moe exaone4 exaone_moe flex_olmo gemma gemma2 gemma3_text glm glm4 glm4_moe glm4_moe_lite gpt2
    gpt_bigcode gpt_neox gpt_oss granite granite_swa granitemoe granitemoe_swa granitemoehybrid granitemoeshared
    helium hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax jais2 jetmoe kolibri1 laguna llama mellum mimo_v2_flash
    minicpm3 minimax_m2 ministral ministral3 mistral mixtral modernbert-decoder nanochat nemotron olmo olmo2 olmo3
    olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 solar_open stablelm
    starcoder2 vaultgemma youtu
    """.split()
)


def small_config(name: str) -> PreTrainedConfig:
    """Return the configuration of a small model of an architecture, with its class in `architectures`."""
    kind = type(CONFIG_MAPPING[name]().get_text_config())
    present = kind().to_dict()
    sizes = {key: value for key, value in _SIZES.items() if key in present and key not in kind.attribute_map}
    if present.get("sliding_window") is None:
        sizes.pop("sliding_window", None)
    if name == "gpt_bigcode":  # computes it from the number of heads
        sizes.pop("head_dim", None)
    config: PreTrainedConfig = kind(**{**sizes, **_OTHERS.get(name, {})})
    config.architectures = [str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name])]
    return config
