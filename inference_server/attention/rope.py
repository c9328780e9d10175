"""Scales rotary positions (RoPE): replaces the model's scaling, and fixes one set of frequencies for all lengths.

For two kinds of scaling (longrope, dynamic), transformers recomputes the frequencies from the longest sequence of a
call. In a batch, one sequence would then change the results of others. The frequencies of later queries would also
differ from those of the keys in the KV cache. So this server chooses one set of frequencies when it loads the model:
the set for the longest sequence that it serves.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Kinds of scaling whose frequencies depend on the length in transformers.
_BY_LENGTH = ("longrope", "dynamic")


@dataclass(frozen=True, slots=True)
class RopeChoice:
    """The scaling of a model's rotary positions.

    Attributes:
        parameters: The catalog's `rope`, as a JSON object with sorted keys; "" for the scaling of the model's configuration.
        num_tokens: The longest sequence that the catalog allows, in tokens; 0 if it is unknown.
    """

    parameters: str = ""
    num_tokens: int = 0

    def apply(self, config: Any) -> None:
        """Write the catalog's scaling into a transformers configuration, and extend its window.

        Raises:
            ValueError: The model has no rotary positions, or its layers have different ones.
        """
        if not self.parameters:
            return
        text = config.get_text_config()
        present = getattr(text, "rope_parameters", None)
        if not present:
            raise ValueError("the catalog sets rope, but the model has no rotary positions: remove [models.rope]")
        if any(isinstance(value, dict) for value in present.values()):
            raise ValueError(
                "the catalog sets rope, but the model's layers have different rotary positions: remove [models.rope]"
            )
        chosen = json.loads(self.parameters)
        original, longest = _lengths(chosen, text.max_position_embeddings)
        kept = {
            name: present[name] for name in ("rope_theta", "partial_rotary_factor") if present.get(name) is not None
        }
        if chosen["rope_type"] not in (
            "llama3",
            "yarn",
            "longrope",
        ):  # the others read the original length from the config
            chosen.pop("original_max_position_embeddings", None)
        else:
            chosen["original_max_position_embeddings"] = original
            if hasattr(text, "original_max_position_embeddings"):  # has priority in transformers (Phi-3)
                text.original_max_position_embeddings = original
        text.rope_parameters = kept | chosen
        text.max_position_embeddings = original if chosen["rope_type"] == "dynamic" else longest

    def fix(self, model: Any) -> None:
        """Set the scaling in a loaded transformers model, with one set of frequencies for all lengths.

        Without a scaling from the catalog, changes only models whose frequencies depend on the length.

        Raises:
            ValueError: As for `apply`, or a list of scaling factors does not match the number of frequencies.
        """
        self.apply(model.config)
        for module in model.modules():
            kinds = getattr(module, "rope_type", None)
            if isinstance(kinds, str) and (self.parameters or kinds in _BY_LENGTH):
                self._fix(module, module.config.rope_parameters["rope_type"], "", {})
                module.rope_type = "default"
            elif isinstance(kinds, dict):
                for layer_type, kind in kinds.items():
                    if kind in _BY_LENGTH:
                        self._fix(module, kind, f"{layer_type}_", {"layer_type": layer_type})
                module.rope_type = {name: "default" if kind in _BY_LENGTH else kind for name, kind in kinds.items()}

    def _fix(self, module: Any, kind: str, prefix: str, options: dict[str, str]) -> None:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        config, frequencies = module.config, getattr(module, f"{prefix}inv_freq")
        rope = config.rope_parameters[options["layer_type"]] if options else config.rope_parameters
        length = self.num_tokens if self.num_tokens > original_length(rope, config) else None
        for name in ("short_factor", "long_factor"):
            factors = rope.get(name)
            if factors and len(factors) != len(frequencies):
                raise ValueError(
                    f"{name} needs one value for each of its {len(frequencies)} frequencies, not {len(factors)}"
                )
        if kind == "default":
            chosen, scaling = module.compute_default_rope_parameters(config)
        else:
            chosen, scaling = ROPE_INIT_FUNCTIONS[kind](config, frequencies.device, seq_len=length, **options)
        frequencies.copy_(chosen)
        setattr(module, f"{prefix}attention_scaling", scaling)

    def variant(self, config: Mapping[str, Any]) -> str:
        """Return an identifier of the frequencies for a packed model's name; "" for those of the model's configuration.

        Args:
            config: The content of config.json.
        """
        determining: list[Any] = [self.parameters] if self.parameters else []
        if by_length := [rope for rope in _kinds(config, self.parameters) if _is_by_length(rope)]:
            text = config.get("text_config") or config
            if self.num_tokens > min(int(original_length(rope, text) or 0) for rope in by_length):
                determining.append(self.num_tokens)
        return f"rope{hashlib.sha256(json.dumps(determining).encode()).hexdigest()[:8]}" if determining else ""


OWN_ROPE = RopeChoice()  # the scaling of the model's configuration


def scaled_window(parameters: Mapping[str, Any], own: int) -> int:
    """Return the longest sequence in tokens with the catalog's `rope`. `own`: the window of the model's configuration."""
    return _lengths(parameters, own)[1]


def _lengths(parameters: Mapping[str, Any], own: int) -> tuple[int, int]:
    """Return the longest sequence without and with the catalog's scaling, in tokens."""
    original = int(parameters.get("original_max_position_embeddings") or own)
    return original, int(original * float(parameters.get("factor") or 1.0))


def window(config: Any) -> int | None:
    """Return the longest sequence that a transformers configuration allows, in tokens, or None if it sets no limit."""
    limit: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    for each in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if each.get("rope_type") == "dynamic" and limit:
            return int(original_length(each, config) * float(each.get("factor") or 1.0))
    return limit


def rotates_partly(config: Any) -> bool:
    """Return True if a transformers configuration rotates only a part of each head."""
    rope = getattr(config, "rope_parameters", None) or {}
    return float(rope.get("partial_rotary_factor") or 1.0) != 1.0


def original_length(rope: Mapping[str, Any], config: Any) -> int:
    """Return the length in tokens up to which the model was trained without scaled rotary positions; 0 if unknown.

    Args:
        rope: Parameters of the rotary positions.
        config: A transformers configuration, or the content of config.json.
    """
    names = ("original_max_position_embeddings", "max_position_embeddings")
    given = [config.get(name) if isinstance(config, Mapping) else getattr(config, name, None) for name in names]
    return int(next((length for length in (rope.get(names[0]), *given) if length), 0))


def _is_by_length(rope: Mapping[str, Any]) -> bool:
    """Return True if the frequencies depend on the length. Old configurations of Phi 3 call longrope "su" or "yarn"."""
    return rope["rope_type"] in _BY_LENGTH or "long_factor" in rope


def _kinds(config: Mapping[str, Any], parameters: str) -> Iterator[dict[str, Any]]:
    """Yield the parameters of rotary positions: the catalog's, or those in config.json under current or older names."""
    text = config.get("text_config") or config
    rope = json.loads(parameters) if parameters else text.get("rope_parameters") or text.get("rope_scaling") or {}
    for each in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        yield {**each, "rope_type": each.get("rope_type") or each.get("type")}
