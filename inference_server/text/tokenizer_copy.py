"""Copies tokenizers without rebuilding their vocabulary. Rebuilding takes a tenth of a second for 49,000 tokens."""

from tokenizers import Tokenizer

_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def copy_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy without truncation and padding. Original and copy may share the model, which never changes.

    Tokens that are added to one of them do not appear in the other.
    """
    copied = Tokenizer(tokenizer.model)
    for part in _PARTS:
        if (value := getattr(tokenizer, part)) is not None:
            setattr(copied, part, value)
    for _, token in sorted(tokenizer.get_added_tokens_decoder().items()):
        (copied.add_special_tokens if token.special else copied.add_tokens)([token])
    if _added_tokens(copied) == _added_tokens(tokenizer):
        return copied
    # The ids of added tokens have gaps, which are lost if the tokens are added in order.
    copied = Tokenizer.from_str(tokenizer.to_str())
    copied.no_truncation()
    copied.no_padding()
    return copied


def _added_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    return {number: repr(token) for number, token in tokenizer.get_added_tokens_decoder().items()}
