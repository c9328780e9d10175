"""Computes encoders of BERT's family without transformers' model classes, whose import takes seconds.

Covers BERT, RoBERTa, XLM-R and CamemBERT with learned positions and the exact GELU. One matrix product computes
queries, keys and values. On a CPU, the server's own kernels compute the linear layers in every precision that they
support.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from inference_server.cpu.linear.pack import pack
from inference_server.embedding.packing import Packing, attend_rows
from inference_server.embedding.positions import first_position
from inference_server.precision import Precision
from tailrace_shared.config_errors import ConfigurationError

_TYPES = {"bert", "roberta", "xlm-roberta", "camembert"}
_FILE = "model.safetensors"


def supports(config: Any, folder: Path) -> bool:
    """Return True if this module can compute a model.

    Args:
        config: The model's transformers configuration.
        folder: The model's folder.
    """
    is_plain = (
        config.model_type in _TYPES
        and config.hidden_act == "gelu"
        and not config.is_decoder
        and not getattr(config, "add_cross_attention", False)
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
    )
    return is_plain and (folder / _FILE).is_file()


class _Layer:
    """The weights of one layer, and its forward pass."""

    def __init__(self, weights: "_Weights", prefix: str, config: Any, precision: Precision) -> None:
        attention, output = f"{prefix}attention.", f"{prefix}attention.output."
        self._num_heads: int = config.num_attention_heads
        self._eps: float = config.layer_norm_eps
        projections = [weights.linear(f"{attention}self.{name}") for name in ("query", "key", "value")]
        self._qkv = weights.packed(projections, precision)
        self._attended = weights.packed([weights.linear(f"{output}dense")], precision)
        self._attended_norm = weights.pair(f"{output}LayerNorm")
        self._up = weights.packed([weights.linear(f"{prefix}intermediate.dense")], precision)
        self._down = weights.packed([weights.linear(f"{prefix}output.dense")], precision)
        self._norm = weights.pair(f"{prefix}output.LayerNorm")

    def forward(self, x: Tensor, row: Packing) -> Tensor:
        """Return the layer's output, in the shape of `x`: (num_tokens, hidden_size)."""
        qkv = self._qkv(x).view(len(x), 3, self._num_heads, -1).permute(1, 2, 0, 3)
        attended = attend_rows(qkv[0], qkv[1], qkv[2], row, is_causal=False)
        x = self._normed(x + self._attended(attended.flatten(1)), self._attended_norm)
        return self._normed(x + self._down(F.gelu(self._up(x))), self._norm)

    def _normed(self, x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), *norm, eps=self._eps)


class BertModel:
    """An encoder of BERT's family. Implements TokenModel."""

    def __init__(
        self, folder: Path, config: Any, precision: Precision, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Read the weights.

        Args:
            folder: The model's folder.
            config: Its transformers configuration, which `supports` accepts.
            precision: The precision in use on the device.
            dtype: Dtype of the activations.
            device: Device of all tensors.

        Raises:
            ConfigurationError: A tensor is missing or has an unexpected shape; the message names it.
        """
        width = config.hidden_size
        self.dimensions: int = width
        self.vocab_size: int = config.vocab_size
        self._eps: float = config.layer_norm_eps
        self._first_position = first_position(config)
        with safe_open(folder / _FILE, framework="pt", device="cpu") as file:
            names = list(file.keys())
            prefix = next((name.removesuffix(_WORDS) for name in names if name.endswith(_WORDS)), "")
            weights = _Weights({name.removeprefix(prefix): name for name in names}, file, dtype, device)
            self._words = weights.tensor(_WORDS, config.vocab_size, width)
            positions = weights.tensor("embeddings.position_embeddings.weight", config.max_position_embeddings, width)
            # Every token has type 0.
            types = weights.tensor("embeddings.token_type_embeddings.weight", config.type_vocab_size, width)
            self._positions, self._type = positions, types[0]
            self._norm = weights.pair("embeddings.LayerNorm")
            self._layers = [
                _Layer(weights, f"encoder.layer.{index}.", config, precision)
                for index in range(config.num_hidden_layers)
            ]
        self.num_bytes = weights.num_bytes

    def hidden(self, texts: Items[Items[int]], row: Packing) -> Tensor:
        """Return the vectors of all tokens, of shape (num_tokens, dimensions). See TokenModel."""
        device = self._words.device
        ids = torch.tensor([token for text in texts for token in text], device=device)
        places = row.positions(self._first_position).to(device)
        x = F.embedding(ids, self._words) + self._type + F.embedding(places, self._positions)
        x = F.layer_norm(x, (self.dimensions,), *self._norm, eps=self._eps)
        for layer in self._layers:
            x = layer.forward(x, row)
        return x

    def probe(self) -> None:
        """Do nothing: the tests compare this module with transformers."""


_WORDS = "embeddings.word_embeddings.weight"


class _Weights:
    """Reads tensors by their names in transformers' BertModel. `num_bytes`: bytes of the tensors read so far."""

    def __init__(self, names: Mapping[str, str], file: Any, dtype: torch.dtype, device: torch.device) -> None:
        self._names = names
        self._file = file
        self._dtype = dtype
        self._device = device
        self.num_bytes = 0

    def tensor(self, name: str, *shape: int) -> Tensor:
        """Return a tensor. Raises ConfigurationError if it is missing, or if `shape` is passed and does not match."""
        # Checkpoints of 2018 have other names for the parameters of norms.
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        stored = self._names.get(name) or self._names.get(old)
        if stored is None:
            raise ConfigurationError(f"the weights lack the tensor {name}")
        tensor: Tensor = self._file.get_tensor(stored).to(self._device, self._dtype)
        if shape and tuple(tensor.shape) != shape:
            raise ConfigurationError(f"the tensor {name} has the shape {tuple(tensor.shape)} instead of {shape}")
        self.num_bytes += tensor.nbytes
        return tensor

    def pair(self, prefix: str) -> tuple[Tensor, Tensor]:
        """Return the weight and the bias whose names begin with `prefix`."""
        return self.tensor(f"{prefix}.weight"), self.tensor(f"{prefix}.bias")

    def linear(self, prefix: str) -> nn.Linear:
        """Return the linear layer whose tensors' names begin with `prefix`."""
        weight, bias = self.pair(prefix)
        linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.bias = nn.Parameter(bias, requires_grad=False)
        return linear

    def packed(self, linears: list[nn.Linear], precision: Precision) -> nn.Module:
        """Return one module for layers that share their input, with this CPU's kernels where they exist."""
        return pack(linears, precision if self._device.type == "cpu" else "float32")
