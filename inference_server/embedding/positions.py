"""Positions of tokens, which begin at another number in RoBERTa's family."""

from typing import Any


def first_position(config: Any) -> int:
    """Return the position of a text's first token. RoBERTa's family counts from the padding token's id."""
    counts_from_padding = "roberta" in config.model_type or config.model_type == "camembert"
    return int(config.pad_token_id) + 1 if counts_from_padding else 0


def longest_text(config: Any) -> int:
    """Return the number of tokens for which the model has positions."""
    return int(config.max_position_embeddings) - first_position(config)
