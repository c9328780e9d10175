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
    """Return the unchanged `[[models]]` tables by the name that clients request."""
    document = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))
    return {table["name"]: table for table in document["models"]}


def removed_on(name: str) -> str | None:
    """Return the day on which Cloudflare removed a model, YYYY-MM-DD; None if it did not."""
    return tables().get(name, {}).get("removed")


def gate(table: Mapping[str, Any]) -> str | None:
    """Return the page on which the licence of a gated model must be accepted; None for open weights."""
    return f"https://huggingface.co/{table['hub']}" if table.get("gated") else None


def how_to_serve(name: str) -> str | None:
    """Return a clause with the command that serves a catalogue model, or with the reason why no engine runs it.

    Returns None if the catalogue does not contain the name.
    """
    table = tables().get(name)
    if table is None:
        return None
    runs_on = table.get("runs_on", "tailrace")
    if runs_on == "none":
        return f"no engine of Tailrace runs it ({table['obstacle']})"
    step = f"`tailrace serve {name}` serves it"
    if runs_on == "vllm":
        step = f'a catalog entry with engine = "vllm" and source = {{ hub = "{table["hub"]}" }} serves it'
    if page := gate(table):
        return f"accept its licence on {page} and set HF_TOKEN, then {step}"
    return step
