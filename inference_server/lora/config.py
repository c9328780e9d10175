"""Reads the configuration of a LoRA adapter in PEFT's format, and refuses the kinds that this server cannot apply.

Does not import torch or peft.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from inference_server.errors import UnsupportedModel

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 256

# Settings that do not make an adapter unsupported. This module reads or checks some of them, such as r, lora_alpha and
# bias. The others describe the training, or the choice of modules, which the tensors' names also show.
_SUPPORTED = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "loftq_config",
    "corda_config",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}
# Initialisations that do not change the weights of the model. An adapter with any other initialisation fits only a
# model whose weights were changed.
_INITIALIZATIONS = {"true", "false", "gaussian", "eva", "orthogonal", "none"}
_EXPLANATIONS = {
    "use_dora": "is a DoRA adapter (use_dora)",
    "lora_bias": "has a bias of its own (lora_bias)",
    "modules_to_save": "replaces whole modules (modules_to_save)",
    "trainable_token_indices": "replaces embeddings of tokens (trainable_token_indices)",
    "target_parameters": "adapts parameters instead of modules (target_parameters)",
    "layer_replication": "repeats layers (layer_replication)",
    "alora_invocation_tokens": "is an activated LoRA (alora_invocation_tokens)",
}


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The part of an adapter's configuration that determines the ranks and the factors of its matrices.

    Attributes:
        rank: The rank of matrices without an entry in the configuration's rank_pattern.
        alpha: The alpha of matrices without an entry in `alpha_pattern`.
        largest_rank: The largest rank that the configuration mentions.
        uses_square_root: True if the factor is alpha / sqrt(rank) instead of alpha / rank (rank-stabilized LoRA).
        alpha_pattern: Other values of alpha, by a regular expression for the end of the module's name.
    """

    rank: int
    largest_rank: int
    alpha: float
    uses_square_root: bool
    alpha_pattern: Mapping[str, float]

    def factor(self, module: str, rank: int) -> float:
        """Return the factor that multiplies the product of a module's matrices. `rank`: the matrices' rank."""
        alpha = self.alpha
        for pattern, value in self.alpha_pattern.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        return alpha / (sqrt(rank) if self.uses_square_root else rank)


def read_config(folder: Path) -> AdapterConfig:
    """Return the configuration of the adapter in a folder.

    Raises:
        UnsupportedModel: A file is missing or damaged, or the adapter is of an unsupported kind. The message names the folder.
    """
    document = _document(folder)
    if reason := _obstacle(document):
        raise UnsupportedModel(f"the adapter {folder} {reason}, which this server does not support")
    rank, alpha = document.get("r", 8), document.get("lora_alpha", 8)
    if not _is_number(rank) or rank != int(rank) or not 1 <= rank <= MAX_RANK:
        raise UnsupportedModel(f"the adapter {folder} has the rank {rank!r}: it must be 1 to {MAX_RANK}")
    patterns, ranks = document.get("alpha_pattern") or {}, document.get("rank_pattern") or {}
    if not _is_number(alpha) or not isinstance(patterns, dict) or not all(map(_is_number, patterns.values())):
        raise UnsupportedModel(f"{folder / CONFIG_FILE}: lora_alpha and the values of alpha_pattern must be numbers")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UnsupportedModel(f"{folder / CONFIG_FILE}: alpha_pattern {pattern!r}: {error}") from None
    if not (folder / WEIGHTS_FILE).is_file():
        hint = ": save the adapter as safetensors" if (folder / "adapter_model.bin").is_file() else ""
        raise UnsupportedModel(f"the adapter {folder} lacks the file {WEIGHTS_FILE}{hint}")
    largest = max([rank, *filter(_is_number, ranks.values() if isinstance(ranks, dict) else ())])
    return AdapterConfig(int(rank), int(largest), float(alpha), bool(document.get("use_rslora")), patterns)


def _document(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnsupportedModel(f"{folder} is not a LoRA adapter: cannot read {CONFIG_FILE}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UnsupportedModel(f"{path} is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise UnsupportedModel(f"{path} does not contain a JSON object")
    return document


def _obstacle(document: dict[str, Any]) -> str:
    """Return the unsupported property of an adapter as the predicate of a sentence; "" if there is none."""
    if (kind := document.get("peft_type", "LORA")) != "LORA":
        return f"is of type {kind}"
    if (bias := document.get("bias", "none")) not in (None, "none"):
        return f"trains biases (bias = {bias!r})"
    start = str(document.get("init_lora_weights", True)).lower()
    if start not in _INITIALIZATIONS:
        return f"changes the weights of the model (init_lora_weights = {document['init_lora_weights']!r})"
    for name, value in document.items():
        if value and name not in _SUPPORTED:
            return _EXPLANATIONS.get(name, f"sets {name}")
    return ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
