"""Computes the vectors of tokens with a model class of transformers that calls `packing.attend` for its attention."""

from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference_server import garbage
from inference_server.cpu.linear.pack import pack
from inference_server.embedding import packing
from inference_server.embedding.packing import Packing
from inference_server.embedding.positions import first_position
from inference_server.errors import UnsupportedModel, first_line
from inference_server.linears.plain import as_linear, is_linear
from inference_server.precision import Precision
from inference_server.weights.loading_lock import LOADING
from tailrace_shared.config_errors import ConfigurationError

# Prefixes of the names of head weights. Vectors do not depend on them, and checkpoints often lack them.
_UNUSED = ("pooler.", "lm_head.", "cls.")


class TransformersModel:
    """A transformers model without its head. Implements TokenModel."""

    def __init__(self, folder: Path, precision: Precision, dtype: torch.dtype, device: torch.device) -> None:
        """Load the weights.

        Args:
            folder: The model's folder.
            precision: The precision in use on the device.
            dtype: Dtype of the activations.
            device: Device of all tensors.

        Raises:
            ConfigurationError: Tensors are missing or have other shapes; the message names the first one.
        """
        packing.register()
        with LOADING, garbage.paused():
            from transformers import AutoModel

            model, report = AutoModel.from_pretrained(
                folder,
                output_loading_info=True,
                dtype=dtype,
                attn_implementation=packing.NAME,
                device_map={"": device},
                use_safetensors=True,
            )
        # transformers fills missing tensors with random numbers and continues.
        lacking = {*map(str, report["missing_keys"]), *map(str, report["mismatched_keys"])}
        if missing := sorted(name for name in lacking if not name.startswith(_UNUSED)):
            raise ConfigurationError(
                f"the weights lack {len(missing)} tensors or have them in other shapes: {missing[0]}"
            )
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        self.num_bytes = int(model.get_memory_footprint())
        self.dimensions: int = model.config.hidden_size
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        self._model = model.eval()
        self._device = device
        self._first_position = first_position(model.config)
        if device.type == "cpu" and precision != "float32":  # there are no kernels for float32
            _pack_linears(model, precision)

    @torch.inference_mode()
    def probe(self) -> None:
        """Compare two short texts in one batch with each text by itself, computed by transformers' own attention.

        Raises:
            UnsupportedModel: The results differ, or the model does not run, because its attention is not supported.
        """
        texts = [[token % self.vocab_size for token in range(5, 5 + length)] for length in (3, 8)]
        try:
            together = self.hidden(texts, Packing.of([3, 8])).float()
            alone = torch.cat([self._alone(text) for text in texts]).float()
        except UnsupportedModel:
            raise
        except (TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise UnsupportedModel(f"it does not run as an embedding model ({first_line(error)})") from error
        tolerance = 1e-3 if together.dtype is torch.float32 and self._model.dtype is torch.float32 else 0.1
        if (together - alone).abs().max() > tolerance * alone.abs().max():
            raise UnsupportedModel(
                "a text's vectors depend on the other texts of its batch: its attention is not supported"
            )

    def hidden(self, texts: Items[Items[int]], row: Packing) -> Tensor:
        """Return the vectors of all tokens, of shape (num_tokens, dimensions). See TokenModel."""
        ids = torch.tensor([token for text in texts for token in text], device=self._device)
        positions = row.positions(self._first_position).to(self._device)
        output = self._model(
            input_ids=ids.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False, packing=row
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _alone(self, text: list[int]) -> Tensor:
        self._model.set_attn_implementation("sdpa")
        try:
            ids = torch.tensor([text], device=self._device)
            hidden: Tensor = self._model(input_ids=ids, use_cache=False).last_hidden_state[0]
            return hidden
        finally:
            self._model.set_attn_implementation(packing.NAME)


def _pack_linears(model: Any, precision: Precision) -> None:
    """Replace the linear layers with modules that run this CPU's kernels."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if is_linear(child):
                setattr(module, name, pack([as_linear(child)], precision))
