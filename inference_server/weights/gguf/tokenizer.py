"""Reads the tokenizer of a model in a GGUF file, and corrects the way it splits text into words."""

import logging
from typing import Any

from inference_server.weights.gguf.file import GgufFile
from inference_server.weights.gguf.quick_conversion import quick_conversion

logger = logging.getLogger(__name__)

# Vocabularies (llama.cpp's names) whose tokenizers split numbers into digits. transformers would split as for GPT-2.
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
# Vocabularies that transformers may not support, each with a supported one whose tokenizer splits texts equally.
_SAME_SPLIT = {
    "chatglm-bpe": "llama3",
    "glm4": "llama3",
    "stablelm2": "qwen2",
    "hunyuan": "qwen2",
    "megrez": "qwen2",
}
# Vocabularies whose tokenizers split texts as GPT-2's does.
_GPT2 = {"default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "granite-docling"}


def read_gguf_tokenizer(file: GgufFile) -> Any:
    """Return the file's tokenizer as a fast tokenizer of transformers. The caller holds loading_lock.LOADING."""
    from transformers import AutoTokenizer

    with quick_conversion():
        tokenizer = AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name)
    if file.metadata.get("tokenizer.ggml.model") == "gpt2":
        _split(tokenizer, str(file.metadata.get("tokenizer.ggml.pre", "default")), file.path.name)
    return tokenizer


def _split(tokenizer: Any, vocabulary: str, name: str) -> None:
    """Make a byte-level tokenizer split texts into words as in the training of its vocabulary."""
    from tokenizers import Regex, pre_tokenizers

    known = _splits_of_transformers()
    backend = tokenizer.backend_tokenizer
    if vocabulary in _SINGLE_DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif vocabulary not in known and (same := known.get(_SAME_SPLIT.get(vocabulary, ""))):
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(same), behavior="isolated"), plain])
    elif known and vocabulary not in known and vocabulary not in _GPT2:
        logger.warning(
            "%s: texts are split into words as for GPT-2, because the vocabulary type %r is unknown: some token ids may "
            "differ from those of the model's own tokenizer",
            name,
            vocabulary,
        )


def _splits_of_transformers() -> dict[str, str]:
    """Return transformers' regular expressions for splits, by vocabulary; {} in releases without this mapping."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:
        return {}
    return dict(GGUF_PRE_TOKENIZER_SPLITS)
