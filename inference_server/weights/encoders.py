"""Recognises embedding models, so that the server does not load one as a model that generates text."""

import json
from pathlib import Path

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


def refuse_encoders(folder: Path) -> None:
    """Check that the model in `folder` generates text.

    Raises:
        UnsupportedModel: It is an encoder, or sentence-transformers wrote its folder.
    """
    config = folder / "config.json"
    described = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    is_encoder = described.get("model_type") in _ENCODERS and not described.get("is_decoder")
    if is_encoder or (folder / "modules.json").is_file():
        raise UnsupportedModel('it embeds text and generates none: set task = "embedding" in its catalog entry')
