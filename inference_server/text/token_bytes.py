"""Converts single tokens to bytes: a token may be part of a character, which text cannot represent."""

import re
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """Byte values of a vocabulary's tokens: byte-level BPE (GPT-2's table) or SentencePiece (▁ and <0xNN>)."""

    def __init__(self, tokenizer: Any) -> None:
        """Create the table for a tokenizer of the tokenizers library."""
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        self._tokenizer = tokenizer
        self._is_byte_level = "ByteLevel(" in repr(tokenizer.decoder)
        self._bytes = {character: byte for byte, character in bytes_to_unicode().items()}
        # The vocabulary contains added tokens as plain text, regardless of the encoding of the other tokens.
        self._added = {
            token_id: b"" if token.special else token.content.encode()
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
        }

    def __call__(self, token_id: int) -> bytes:
        """Return a token's bytes; empty for a control token and for an id outside the vocabulary."""
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
