"""Converts texts to token ids. Thread-safe: the tokenizer's settings never change after construction."""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding

from inference_server.embedding.model_files import VectorRules
from inference_server.errors import UnsupportedModel
from inference_server.text.tokenizer_copy import copy_tokenizer


@dataclass(frozen=True, slots=True)
class EncodedText:
    """The token ids of a text with control tokens, after truncation. `num_tokens`: their number before truncation."""

    token_ids: list[int]
    num_tokens: int


class TextEncoder:
    """Tokenizer of one embedding model, with the model's control tokens around each text."""

    def __init__(self, tokenizer: Any, rules: VectorRules) -> None:
        """Create an encoder.

        Args:
            tokenizer: The transformers tokenizer.
            rules: The model's rules; those for the prefix and for lower case are applied.

        Raises:
            UnsupportedModel: The model has no fast tokenizer.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UnsupportedModel("it has no tokenizer.json, and its tokenizer cannot be converted")
        self._tokenizer = copy_tokenizer(backend)
        self._rules = rules
        self._num_control_tokens = int(self._tokenizer.num_special_tokens_to_add(False))

    def encode(self, texts: Items[str], max_tokens: int) -> list[EncodedText]:
        """Return the token ids of each text, cut at its end to `max_tokens` tokens, control tokens included."""
        rules = self._rules
        # sentence-transformers removes white space around a text as well.
        prepared = [rules.prefix + (text.lower() if rules.lowercases else text).strip() for text in texts]
        encodings = self._tokenizer.encode_batch_fast(prepared, add_special_tokens=False)
        return [self._finished(encoding, max_tokens) for encoding in encodings]

    def _finished(self, encoding: Encoding, max_tokens: int) -> EncodedText:
        num_tokens = len(encoding.ids) + self._num_control_tokens
        encoding.truncate(max(0, max_tokens - self._num_control_tokens))
        token_ids = self._tokenizer.post_process(encoding, add_special_tokens=True).ids
        return EncodedText(token_ids, num_tokens)
