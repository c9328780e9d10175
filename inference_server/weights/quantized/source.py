"""Loads a quantised checkpoint with transformers, and passes its 4-bit codes to the layers that are packed."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from inference_server.weights.quantized.checkpoint import Checkpoint, read_configuration, read_format


@dataclass(frozen=True, slots=True)
class QuantizedSource:
    """A folder with weights in a quantised format that transformers does not read without an additional package."""

    folder: Path
    checkpoint: Checkpoint

    def load(self, **options: Any) -> Any:
        """Return the model and the loading report, as transformers' `from_pretrained` does with these options.

        The options include `output_loading_info=True`.

        Raises:
            ValueError: transformers has no causal language model for the configuration.
        """
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

        config = AutoConfig.from_pretrained(self.folder)
        for each in (config, config.get_text_config()):
            if hasattr(each, "quantization_config"):
                del each.quantization_config
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ValueError(f"transformers has no causal language model of the type {config.model_type}")
        architecture = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        state = self.checkpoint.state()
        model, report = architecture.from_pretrained(None, config=config, state_dict=state, **options)
        self._complete(model)
        return model, report

    def _complete(self, model: Any) -> None:
        """Set the generation config, and make layers with 4-bit codes keep these codes when they are packed as int4."""
        from transformers import GenerationConfig

        if (self.folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(self.folder)
        modules = dict(model.named_modules())
        for layer in self.checkpoint.int4_layers:
            module = modules.get(layer)
            if type(module) is nn.Linear:
                module.stored_int4 = partial(self.checkpoint.int4, layer)  # type: ignore[assignment]


def quantized_source(folder: Path) -> QuantizedSource | None:
    """Return the source of a folder with quantised weights; None if transformers reads the folder itself.

    Raises:
        UnsupportedModel: The format is not supported.
    """
    quantized = read_format(read_configuration(folder))
    return None if quantized is None else QuantizedSource(folder, Checkpoint(folder, quantized))
