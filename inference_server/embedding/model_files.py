"""Reads the files in which sentence-transformers stores the steps from a text to its vector.

A folder without these files gets the defaults of sentence-transformers: the mean of all tokens, not normalised.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from inference_server.embedding.pooling_names import Pooling
from inference_server.errors import UnsupportedModel

_MODULES = "modules.json"
_SUPPORTED = ("Transformer", "Pooling", "Normalize")
# Names of the poolings in the files: a key with the value true, or the value of the key `pooling_mode`.
_KEYS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}
_NAMES = {"cls": "cls", "mean": "mean", "lasttoken": "last", "last": "last"}


@dataclass(frozen=True, slots=True)
class VectorRules:
    """The steps from text to tokens and from token vectors to a vector.

    Attributes:
        pooling: The model's own pooling.
        normalizes: True if vectors are scaled to length 1.
        max_tokens: Longest text in tokens, including control tokens; None: not limited by these files.
        prefix: Text that is prepended to every text.
        lowercases: True if texts are converted to lower case.
        is_declared: True if the rules come from sentence-transformers' files, False if they are the defaults.
    """

    pooling: Pooling = "mean"
    normalizes: bool = False
    max_tokens: int | None = None
    prefix: str = ""
    lowercases: bool = False
    is_declared: bool = False


def read_rules(folder: Path) -> VectorRules:
    """Return the rules of the model in `folder`.

    Raises:
        UnsupportedModel: The model needs a module or a pooling that is not supported; the message names it.
        ValueError: A file is not valid JSON.
    """
    if not (folder / _MODULES).is_file():
        return VectorRules()
    modules = _read(folder / _MODULES, [])
    names = [str(module["type"]).rpartition(".")[2] for module in modules]
    if unsupported := [name for name in names if name not in _SUPPORTED]:
        raise UnsupportedModel(f"{_MODULES} has the module {unsupported[0]}; supported are {', '.join(_SUPPORTED)}")
    paths = {name: folder / str(module.get("path", "")) for name, module in zip(names, modules, strict=True)}
    transformer = _read(paths.get("Transformer", folder) / "sentence_bert_config.json", {})
    prompts = _read(folder / "config_sentence_transformers.json", {})
    return VectorRules(
        pooling=_pooling(_read(paths["Pooling"] / "config.json", {})) if "Pooling" in paths else "mean",
        normalizes="Normalize" in names,
        max_tokens=transformer.get("max_seq_length"),
        prefix=(prompts.get("prompts") or {}).get(prompts.get("default_prompt_name"), ""),
        lowercases=bool(transformer.get("do_lower_case")),
        is_declared=True,
    )


def _pooling(config: dict[str, Any]) -> Pooling:
    modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    named = config.get("pooling_mode")
    found = [_KEYS.get(mode) for mode in modes] if named is None else [_NAMES.get(str(named))]
    if len(found) != 1 or found[0] not in get_args(Pooling):
        raise UnsupportedModel(f"its pooling is {named or ', '.join(modes)}; supported are mean, cls and last token")
    return cast(Pooling, found[0])


def _read(path: Path, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default
