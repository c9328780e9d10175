"""Converts token ids to text and to bytes. Thread-safe: the tokenizer's settings never change after construction."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from tokenizers import Tokenizer

from inference_server.text.detokenizer import Decode
from inference_server.text.token_bytes import TokenBytes


class TokenDecoder:
    """Converts one model's token ids to text and to bytes, with or without control tokens."""

    def __init__(self, tokenizer: Tokenizer, control_ids: Mapping[str, int]) -> None:
        """Create a decoder. `control_ids`: token ids of the tokenizer's control tokens by their text."""
        self._tokenizer = tokenizer
        self._control_ids = control_ids
        self.token_bytes = TokenBytes(tokenizer)

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of token ids, without control tokens."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def decode_function(self, visible: Iterable[str]) -> Decode:
        """Return a function like `decode` that keeps the control tokens in `visible` as text."""
        texts = {self._control_ids[token]: token for token in visible if token in self._control_ids}
        return partial(self._decode_visible, texts) if texts else self.decode

    def bytes_function(self, visible: Iterable[str]) -> Callable[[int], bytes]:
        """Return a function from a token's id to its bytes: for control tokens in `visible`, those of their text."""
        texts = {self._control_ids[token]: token.encode() for token in visible if token in self._control_ids}
        return lambda token_id: texts.get(token_id) or self.token_bytes(token_id)

    def _decode_visible(self, texts: Mapping[int, str], token_ids: list[int]) -> str:
        pieces, start = [], 0
        for place, token_id in enumerate(token_ids):
            if token_id in texts:
                pieces += [self.decode(token_ids[start:place]), texts[token_id]]
                start = place + 1
        return "".join([*pieces, self.decode(token_ids[start:])])
