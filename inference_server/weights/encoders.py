"""Recognises embedding models, so that the server does not load one as a model that generates text."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference_server.errors import UnsupportedModel

_ENCODERS = {
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "distilbert",
    "electra",
    "mpnet",
    "modernbert",
    "nomic_bert",
}


def is_encoder(config: Mapping[str, Any], folder: Path) -> bool:
    """Return True if a model embeds text: its architecture does, or sentence-transformers wrote its folder.

    Args:
        config: The content of its config.json.
        folder: Its folder.
    """
    is_known = config.get("model_type") in _ENCODERS and not config.get("is_decoder")
    return is_known or (folder / "modules.json").is_file()


def refuse_encoders(folder: Path) -> None:
    """Check that the model in `folder` generates text.

    Raises:
        UnsupportedModel: It is an encoder, or sentence-transformers wrote its folder.
    """
    config = folder / "config.json"
    described = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    if is_encoder(described, folder):
        raise UnsupportedModel('it embeds text and generates none: set task = "embedding" in its catalog entry')
