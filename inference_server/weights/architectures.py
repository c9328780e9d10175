"""Refuses models that this server does not run. Reads only their configuration, so that no weights are downloaded.

Architectures are named by transformers' `model_type`. tests/exact/test_architectures.py builds a small model of every
kind, and docs/architectures.md has the results. A model that this module does not list is loaded, and
ModelRunner.probe checks it with one token.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference_server.errors import UnsupportedModel

# Architectures that this server does not run, by the reason, which is a clause.
_BY_REASON: dict[str, str] = {
    'it embeds text instead of generating it: set task = "embedding" in its catalog entry': """
        albert bert big_bird camembert canine convbert data2vec-text deberta deberta-v2 distilbert electra ernie esm eurobert
        flaubert funnel ibert longformer luke megatron-bert mobilebert modernbert mpnet nezha nomic_bert nystromformer rembert
        roberta roberta-prelayernorm roc_bert roformer squeezebert xlm-roberta xlm-roberta-xl xmod yoso
        """,
    "it has an encoder in addition to its decoder, and this server runs only decoders": """
        bart bigbird_pegasus blenderbot blenderbot-small fsmt led longt5 m2m_100 marian mbart mt5 mvp nllb-moe pegasus pegasus_x
        plbart prophetnet seamless_m4t speech_to_text switch_transformers t5 t5gemma t5gemma2 trocr udop umt5 whisper
        """,
    "its layers keep a state instead of keys and values (state space or recurrence)": """
        bailing_hybrid bamba falcon_h1 falcon_mamba jamba kimi_linear lfm2 lfm2_moe lfm3 mamba mamba2 minimax nemotron_h
        olmo_hybrid qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_next qwen4_exp qwen4_exp_text
        recurrent_gemma rwkv xlstm zamba zamba2 zaya
        """,
    "its attention has position biases (ALiBi), which this server does not compute": "bloom mpt",
    "its modules in transformers compute attention themselves and cannot use this server's KV cache": """
        codegen cpmant ctrl falcon gpt_neo gpt_neox_japanese gptj openai-gpt reformer xglm xlm xlnet
        """,
    "it has a form of attention that this server does not support": """
        blt deepseek_v32 deepseek_v4 diffllama doge flint glm_moe_dsa hrm_text hy_v4 inkling2_text inkling_text longcat_flash
        """,
    "its attention is chunked": "llama4 llama4_text",
    "it processes images or sound in addition to text": "git mllama moshi musicgen musicgen_melody phi4_multimodal",
}
_REASONS = {name: reason for reason, names in _BY_REASON.items() for name in names.split()}
_ENCODERS = next(iter(_BY_REASON))
_LAYER_TYPES = {"attention", "full_attention", "sliding_attention"}


def reasons() -> Mapping[str, str]:
    """Return the architectures that this server does not run, each with the reason as a clause."""
    return _REASONS


def refuse_unsupported(folder: Path) -> None:
    """Check that the configuration in `folder` is not that of an unsupported model.

    Raises:
        UnsupportedModel: This server does not run the model. The message is a clause with the reason and, except for
            embedding models, the architecture.
        ValueError: config.json is not a JSON object.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(config, dict):
        raise ValueError("its config.json is not a JSON object")
    reason = _ENCODERS if is_encoder(config, folder) else refusal(config)
    if reason is not None:
        raise UnsupportedModel(reason)


def is_encoder(config: Mapping[str, Any], folder: Path) -> bool:
    """Return True if a model embeds text: its architecture does, or sentence-transformers wrote its folder.

    Args:
        config: The content of its config.json.
        folder: Its folder.
    """
    is_known = _REASONS.get(str(config.get("model_type"))) == _ENCODERS and not config.get("is_decoder")
    return is_known or (folder / "modules.json").is_file()


def refusal(config: Mapping[str, Any]) -> str | None:
    """Return the reason why this server does not run a model with this content of config.json; None if it may run."""
    name = str(config.get("model_type"))
    text = config.get("text_config")
    parts = [config, text] if isinstance(text, Mapping) else [config]
    for part in parts:
        reason = _REASONS.get(str(part.get("model_type")))
        # With is_decoder, some encoders run as decoders, with causal attention.
        if reason == _ENCODERS and part.get("is_decoder"):
            reason = None
        if reason is None and part.get("is_encoder_decoder"):
            reason = "it has an encoder in addition to its decoder, and this server runs only decoders"
        if reason is None and part.get("attention_chunk_size"):
            reason = "its attention is chunked"
        if reason is None and (unknown := sorted(_layer_types(part) - _LAYER_TYPES)):
            reason = f"some of its layers are of type {unknown[0]}, which this server does not support"
        if reason is not None:
            return reason if reason == _ENCODERS else f"its architecture is {name}: {reason}"
    return None


def _layer_types(config: Mapping[str, Any]) -> set[str]:
    types = config.get("layer_types") or []
    return set(map(str, types)) if isinstance(types, list) else set()
