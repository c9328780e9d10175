"""The bytes of single tokens, for log probabilities: a token may hold a part of a character, which text cannot show."""

import re
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """Reads tokens of the two forms in use: byte-level BPE (GPT-2's table) and SentencePiece (▁ and <0xNN>)."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: of the tokenizers library."""
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        self._tokenizer = tokenizer
        self._is_byte_level = "ByteLevel(" in repr(tokenizer.decoder)
        self._bytes = {character: byte for byte, character in bytes_to_unicode().items()}
        # Added tokens stand in the vocabulary as they are, whatever the form of the others.
        self._added = {
            token_id: b"" if token.special else token.content.encode()
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
        }

    def __call__(self, token_id: int) -> bytes:
        """A token's bytes; a control token has none."""
        if token_id in self._added:
            return self._added[token_id]
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._is_byte_level:
            return bytes(self._bytes[character] for character in token if character in self._bytes)
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match.group(1), 16)])
        return str(token).replace("▁", " ").encode()
