"""Reads workers-ai.toml: the text and embedding models of Cloudflare Workers AI, and the weights behind them.

Both services use it. inference_server/serving/known_models.py checks every key; this module does not.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

CATALOGUE = Path(__file__).parent / "workers-ai.toml"


@cache
def tables() -> Mapping[str, Mapping[str, Any]]:
    """Return the `[[models]]` tables by the name that clients request, as the file has them."""
    document = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))
    return {table["name"]: table for table in document["models"]}
