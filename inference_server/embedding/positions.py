"""Computes the range of a model's positions, which does not begin at 0 in RoBERTa's family."""

from typing import Any


def first_position(config: Any) -> int:
    """Return the position of a text's first token: 0, or the padding token's id plus 1 in RoBERTa's family."""
    counts_from_padding = "roberta" in config.model_type or config.model_type == "camembert"
    return int(config.pad_token_id) + 1 if counts_from_padding else 0


def longest_text(config: Any) -> int:
    """Return the length in tokens of the longest text for which the model has positions."""
    return int(config.max_position_embeddings) - first_position(config)
