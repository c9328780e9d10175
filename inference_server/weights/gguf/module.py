"""Fills a transformers module from a GGUF file, tensor by tensor.

The module is made without memory for its parameters. A linear layer whose weights are one tensor of the file is either
filled or replaced with a FileLinear. transformers' own processors compute the other parameters, one tensor at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from inference_server.cpu.decoder_weights import MODELS
from inference_server.cpu.embedding import StoredEmbedding, rows_kernel
from inference_server.weights.gguf.file import FileTensor, GgufFile
from inference_server.weights.gguf.linear import FileLinear, read_embedding
from inference_server.weights.gguf.places import Places
from inference_server.weights.gguf.quick_conversion import quick_conversion
from tailrace_shared.config_errors import ConfigurationError

# transformers' processors that do not change the weights of linear layers, apart from the order of rows.
_KEEPS_LINEARS = {
    "TensorProcessor",
    "LlamaTensorProcessor",
    "NemotronTensorProcessor",
    "Gemma2TensorProcessor",
    "Qwen2MoeTensorProcessor",
    "MiniMaxM2TensorProcessor",
}
_INT8_LINEAR = "Linear8bitLt"
_LATER = "ffn_gate_inp_shexp"  # a linear layer with one output: the file stores a vector instead of a matrix


class ModuleFiller:
    """Fills the parameters of one model from its GGUF file."""

    def __init__(self, file: GgufFile, model: Any) -> None:
        """Map the file's tensors to the parameters of `model`, a result of `empty_model`.

        The caller holds loading_lock.LOADING.
        """
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

        self._file, self._model, self.path = file, model, file.path
        self._processor = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)(config=model.config.to_dict())
        with quick_conversion():
            self.names: dict[str, str] = get_gguf_hf_weights_map(model, self._processor)
        self._keeps_linears = type(self._processor).__name__ in _KEEPS_LINEARS
        self.sources: dict[str, FileTensor] = {}  # by a parameter's name: the file's tensor with the same weights
        self._collected: dict[str, Tensor] = {}  # parameters of the current block that are built from several tensors

    def fill(
        self, dtype: torch.dtype, device: torch.device, *, leave: Callable[[str], bool] = lambda name: False
    ) -> None:
        """Fill the parameters and tie the weights.

        Args:
            dtype: The parameters' dtype, apart from those for which transformers' dtype plan names another.
            device: The parameters' device.
            leave: Returns True for the name of a parameter that stays empty.
        """
        block = ""
        for tensor in sorted(self._file.tensors.values(), key=lambda each: _block(each.name)):
            if _block(tensor.name) != block:
                self._set_all(self._collected, dtype, device)
                block = _block(tensor.name)
            if not leave(self.names.get(tensor.name, "")):
                self._set_all(self._parameters(tensor, dtype), dtype, device)
        self._set_all(self._collected, dtype, device)
        self._model.tie_weights()

    def linears(self) -> Iterator[tuple[str, FileTensor, int | None]]:
        """Yield the linear layers whose weights are one tensor of the file.

        Yields the module's name, the tensor, and a number of heads, which is None unless the file interleaves each
        head's rows.

        Raises:
            ConfigurationError: The shape of a tensor differs from that of its layer.
        """
        if not self._keeps_linears:
            return
        modules = dict(self._model.named_modules())
        for tensor in self._file.tensors.values():
            name, _, parameter = self.names.get(tensor.name, "").rpartition(".")
            module = modules.get(name)
            if parameter == "weight" and type(module) is nn.Linear and _LATER not in tensor.name:
                if tuple(module.weight.shape) != tensor.shape:
                    raise self._misshapen(name, tensor.shape, tuple(module.weight.shape))
                yield name, tensor, self._interleaved_heads(tensor.name)

    def embedding(self, dtype: torch.dtype) -> tuple[str, FileTensor] | None:
        """Return the name and the tensor of an embedding that stays empty, because forward passes decode its rows.

        Returns None if the model is not in decoder_weights.MODELS, no tensor of the file is the embedding, or no kernel
        decodes the tensor's rows to `dtype`.
        """
        module = self._model.get_input_embeddings()
        name = next((name for name, each in self._model.named_modules() if each is module), "")
        tensor = next((self._file.tensors[of] for of, to in self.names.items() if to == f"{name}.weight"), None)
        is_plain = type(module) is nn.Embedding and type(self._model).__name__ in MODELS and self._keeps_linears
        if tensor is None or not is_plain or tuple(module.weight.shape) != tensor.shape:
            return None
        return (name, tensor) if rows_kernel(tensor.format.name.lower(), tensor.shape[-1], dtype) else None

    def unchanged(self) -> dict[int, FileTensor]:
        """Return the file's tensors by the addresses of the memory that contains them unchanged."""
        parameters = dict(self._model.named_parameters())
        found = {parameters[name].data_ptr(): tensor for name, tensor in self.sources.items() if name in parameters}
        embedding = self._model.get_input_embeddings()
        if isinstance(embedding, StoredEmbedding):
            name = next(name for name, each in self._model.named_modules() if each is embedding)
            found[embedding.rows.data_ptr()] = self.sources[f"{name}.weight"]
        return found

    def check(self) -> None:
        """Raise ConfigurationError if the file lacks a parameter."""
        missing = [name for name, parameter in self._model.named_parameters() if parameter.is_meta]
        if missing:
            raise ConfigurationError(
                f"cannot load {self._file.path.name}: it lacks {len(missing)} tensors: {missing[0]}"
            )

    def set(self, name: str, value: Tensor) -> None:
        """Replace a parameter or a buffer.

        Raises:
            ConfigurationError: The parameter or buffer has a different shape in this model.
        """
        parent_name, _, last = name.rpartition(".")
        parent = self._model.get_submodule(parent_name)
        present = getattr(parent, last)
        if present.shape != value.shape:
            raise self._misshapen(name, tuple(value.shape), tuple(present.shape))
        if type(parent).__name__ == _INT8_LINEAR and last == "weight":
            # bitsandbytes rounds weights when they are moved from the CPU to a GPU, so they are moved to the CPU first.
            setattr(
                parent, last, type(present)(value.cpu(), requires_grad=False, has_fp16_weights=False).to(value.device)
            )
        elif last in parent._buffers:
            parent._buffers[last] = value
        else:
            setattr(parent, last, nn.Parameter(value, requires_grad=False))

    def _interleaved_heads(self, name: str) -> int | None:
        if type(self._processor).__name__ != "LlamaTensorProcessor":
            return None
        if ".attn_q." in name:
            return int(self._model.config.num_attention_heads)
        return int(self._model.config.num_key_value_heads) if ".attn_k." in name else None

    def _parameters(self, tensor: FileTensor, dtype: torch.dtype) -> dict[str, Any]:
        """Return the parameter that the tensor alone determines, by name, or {}.

        Tensors that are only parts of a parameter are added to `_collected`.
        """
        name = self.names.get(tensor.name)
        is_matrix = self._keeps_linears and len(tensor.shape) == 2 and _LATER not in tensor.name
        if name and is_matrix and self._interleaved_heads(tensor.name) is None:
            self.sources[name] = tensor
            return {name: _weights(self._file, tensor, dtype)}
        weights = _weights(self._file, tensor, torch.float32)
        made: dict[str, Any] = {}
        done = self._processor.process(
            weights=weights.numpy(),
            name=tensor.name,
            tensor_key_mapping=self.names,
            parsed_parameters={"tensors": self._collected},
        )
        if done.name in self.names:
            made[self.names[done.name]] = torch.from_numpy(done.weights.copy())
        return made

    def _set_all(self, made: dict[str, Any], dtype: torch.dtype, device: torch.device) -> None:
        """Set the parameters in `made`, and empty it, so that not all of their float32 weights stay in memory."""
        wide = self._model._get_dtype_plan(dtype) if hasattr(self._model, "_get_dtype_plan") else {}
        for name in list(made):
            value = made.pop(name)
            wanted = next((kept for part, kept in wide.items() if part in name), dtype)
            self.set(name, value.to(device, wanted))

    def _misshapen(self, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> ConfigurationError:
        return ConfigurationError(
            f"cannot load {self._file.path.name}: {name} has the shape {found} instead of {wanted}"
        )


def empty_model(config: Any, dtype: torch.dtype, attention_name: str) -> Any:
    """Return a causal language model without memory for its parameters. Buffers have their values."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False), _without_initialisation():
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention_name)


def quantise_linears(model: Any, threshold: float) -> None:
    """Replace linear layers with bitsandbytes' int8 layers, as transformers does, without memory for their weights.

    `threshold`: bitsandbytes' outlier threshold, 0 for none.
    """
    from transformers import BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    options = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold)
    replace_with_bnb_linear(model, get_keys_to_not_convert(model), options)


def stored_linears(filler: ModuleFiller, model: Any, places: Places, *, widens: bool) -> None:
    """Replace linear layers with FileLinear, after the other parameters have been filled.

    Args:
        filler: Names the layers and their tensors.
        model: The model, which is changed.
        places: Memory for the packed layers.
        widens: See FileLinear.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    found = {name: (tensor, heads) for name, tensor, heads in filler.linears()}
    if head is not None and head.weight is embedding.weight and type(head) is nn.Linear:
        name = next(name for name, module in model.named_modules() if module is embedding)
        if tensor := filler.sources.get(f"{name}.weight"):
            found[next(name for name, module in model.named_modules() if module is head)] = (tensor, None)
    for name, (tensor, heads) in found.items():
        parent, _, last = name.rpartition(".")
        linear = model.get_submodule(name)
        bias = None if linear.bias is None else linear.bias.detach()
        options: dict[str, Any] = {"heads": heads, "bias": bias, "is_head": linear is head, "widens": widens}
        stored = FileLinear(filler.path, tensor, places, **options)
        setattr(model.get_submodule(parent), last, stored)


def stored_embedding(filler: ModuleFiller, model: Any, dtype: torch.dtype) -> None:
    """Replace the embedding with a StoredEmbedding if `filler.embedding` names its tensor.

    Call this function after `stored_linears`, which compares the output head with the original embedding.
    """
    if found := filler.embedding(dtype):
        name, tensor = found
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, read_embedding(filler.path, tensor, dtype))


def _weights(file: GgufFile, tensor: FileTensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor's weights as `dtype`, in the tensor's shape."""
    rows = tensor.num_rows
    linear = FileLinear(
        file.path, FileTensor(tensor.name, (rows, tensor.shape[-1]), tensor.type_id, tensor.offset), Places()
    )
    return linear.plain(dtype).view(tensor.shape)


def _block(name: str) -> str:
    """Return a key that sorts tensors by layer: "blk.000012" for "blk.12.attn_q.weight", "" outside the layers."""
    parts = name.split(".")
    return f"blk.{int(parts[1]):06}" if parts[0] == "blk" and parts[1].isdigit() else ""


@contextmanager
def _without_initialisation() -> Iterator[None]:
    """Prevent transformers from computing initial weights."""
    from transformers import initialization

    with initialization.no_init_weights():
        yield
