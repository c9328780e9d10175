"""Loads transformers models and tokenizers, in the requested precision.

transformers' model classes take more than a second to import, so they are imported only when a model is loaded.
"""

import importlib
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.utils.tqdm import disable_progress_bars
from transformers.utils import import_utils

from inference_server import garbage
from inference_server.attention import paged as attention
from inference_server.attention.rope import OWN_ROPE, RopeChoice
from inference_server.linears import checkpoint
from inference_server.machine import memory_bytes
from inference_server.precision import Precision, activation_dtype, resolve_precision
from inference_server.progress import progress
from inference_server.weights.architectures import refuse_unsupported
from inference_server.weights.download import local_folder, local_path, naming_source, weights_folder
from inference_server.weights.fetching.selection import no_tokenizer
from inference_server.weights.loading_lock import LOADING
from inference_server.weights.replaced import replaced
from inference_server.weights.source import Weights
from inference_server.weights.tokenizers import read_tokenizer
from tailrace_shared.config_errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model as transformers loads it.

    Attributes:
        model: The transformers module, in evaluation mode.
        tokenizer: The transformers tokenizer.
        precision: The precision in use on the model's device.
    """

    model: Any
    tokenizer: Any
    precision: Precision


def silence_libraries() -> None:
    """Turn off the libraries' progress bars and per-call warnings: this package logs progress itself."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # The server's own handler writes the libraries' log lines.
    transformers.logging.disable_default_handler()
    transformers.logging.enable_propagation()
    logging.getLogger("huggingface_hub").handlers.clear()
    disable_progress_bars()
    # bitsandbytes warns of a cast in every linear layer of every step if activations are not float16.
    for name in ("bitsandbytes", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).setLevel(logging.ERROR)


def read_models_folder_once() -> None:
    """Make transformers reuse its list of model classes, which takes 0.25 s to compile (AMD EPYC, Zen 4).

    transformers reads the 2,000 files of its folder `models` when it is imported, and again when it imports that package,
    because the second call names the folder by its __init__.py. Call this function between the two.
    """
    define = import_utils.define_import_structure
    models = Path(transformers.__file__).parent / "models"

    def define_once(module_path: str | Path, prefix: str | None = None) -> Any:
        return define(models if Path(module_path) == models / "__init__.py" else module_path, prefix)

    import_utils.define_import_structure = define_once


def load_model(
    weights: Weights,
    precision: Precision,
    *,
    device: torch.device,
    cache_dir: Path,
    int8_threshold: float = 0.0,
    attention_name: str = attention.NAME,
    rope: RopeChoice = OWN_ROPE,
) -> LoadedModel:
    """Load one model with its tokenizer.

    An int4 model is loaded as float32: `cpu.linear` computes the int4 weights when it packs the layers. Until then, the
    experts of int4 and int8 models stay in the checkpoint's dtype.

    Args:
        weights: The source of the weights; they are downloaded or converted first if necessary.
        precision: The catalog's precision.
        device: Device for all tensors.
        cache_dir: The server's cache folder.
        int8_threshold: Outlier threshold of bitsandbytes, 0 for none.
        attention_name: Attention function, by its name in transformers' registry.
        rope: The scaling of rotary positions.

    Raises:
        ConfigurationError: The weights are missing, damaged or incomplete; the message contains the remedy.
    """
    precision = resolve_precision(precision, device)
    with naming_source(weights):
        folder = local_folder(weights, cache_dir)
        refuse_unsupported(folder)
        path = local_path(weights, cache_dir)
        quantises = precision == "bitsandbytes-int8"
        verb = "quantising" if quantises else "loading"
        with progress(f"{verb} {weights} as {precision}"), LOADING, garbage.paused():
            tokenizer = read_tokenizer(folder) if path.suffix == ".gguf" else _tokenizer(folder, weights)
            attention.register()
            quantisation = _quantisation(folder, precision, device, int8_threshold)
            if quantisation is not None and device.type == "cpu":
                _import_bitsandbytes_without_compiler()
            missing: list[str] = []
            if path.suffix == ".gguf":
                from inference_server.weights.gguf.load import load_module

                options: dict[str, Any] = {"int8_threshold": int8_threshold, "attention_name": attention_name}
                model = load_module(path, folder, precision, device, **options)
            else:
                model, missing = _load_folder(folder, precision, device, quantisation, attention_name)
            rope.fix(model)
        # transformers fills missing tensors with random numbers and raises no error.
        if missing:
            raise ConfigurationError(
                f"{weights} lacks {len(missing)} tensors or has them in other shapes: {missing[0]}"
            )
    return LoadedModel(model.eval(), tokenizer, precision)


def _load_folder(
    folder: Path, precision: Precision, device: torch.device, quantisation: Any | None, attention_name: str
) -> tuple[Any, list[str]]:
    """Return the model of a folder with safetensors, and the sorted names of tensors that are missing or misshapen.

    Args:
        folder: The folder, as transformers reads it.
        precision: The precision in use on the device.
        device: Device for all tensors.
        quantisation: transformers' quantisation config; None: transformers does not quantise.
        attention_name: Attention function, by its name in transformers' registry.
    """
    from transformers import AutoModelForCausalLM

    from inference_server.weights.quantized.source import quantized_source

    dtype = activation_dtype(precision, device)
    narrow = checkpoint.narrow_dtype(folder, precision, device)
    source = quantized_source(folder)
    load = source.load if source else partial(AutoModelForCausalLM.from_pretrained, folder)
    model, report = load(
        output_loading_info=True,
        dtype=narrow or dtype,
        quantization_config=quantisation,
        attn_implementation=attention_name,
        device_map={"": device},
        use_safetensors=True,
    )
    if narrow is not None:
        checkpoint.widen_rest(model, dtype)
    return model, sorted({*map(str, report["missing_keys"]), *map(str, report["mismatched_keys"])})


def _tokenizer(folder: Path, weights: Weights) -> Any:
    """Return the tokenizer in `folder`. Raises ConfigurationError if there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except ValueError as error:
        if "backend tokenizer" not in str(error):
            raise
        raise ConfigurationError(no_tokenizer(f"cannot load {weights}: it")) from error


def _quantisation(folder: Path, precision: Precision, device: torch.device, int8_threshold: float) -> Any | None:
    """Return transformers' quantisation config for a model in `folder`, or None.

    Experts in MXFP4 become bfloat16. On a CPU they are then packed like other weights.

    Raises:
        ConfigurationError: The precision is int8, but a GPU computes the experts in 16 bits.
    """
    from transformers import BitsAndBytesConfig, Mxfp4Config

    quantises = precision == "bitsandbytes-int8"
    if checkpoint.quantisation_method(folder) == checkpoint.MXFP4:
        if quantises and device.type == "cuda":
            raise ConfigurationError(
                f'{folder} has experts in MXFP4, which a GPU computes in 16 bits: set precision = "bfloat16"'
            )
        return Mxfp4Config(dequantize=True)
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=int8_threshold) if quantises else None


def _import_bitsandbytes_without_compiler() -> None:
    """Import bitsandbytes before transformers does, without torch's compiler, whose import takes a second.

    bitsandbytes compiles functions that this server never calls on a CPU. Without the compiler they run uncompiled.
    """

    def uncompiled(function: Any = None, **options: Any) -> Any:
        return function or (lambda decorated: decorated)

    with replaced(torch, "compile", uncompiled):
        importlib.import_module("transformers.integrations.bitsandbytes")


def load_description(weights: Weights, cache_dir: Path) -> tuple[Path, Any, Any, Any]:
    """Return folder, tokenizer, config and generation config of a model, without loading its weights.

    The folder contains the weights, in 16 bits if the source is a GGUF file.

    Raises:
        ConfigurationError: For the same reasons as `load_model`.
    """
    from transformers import AutoConfig, GenerationConfig

    with naming_source(weights):
        folder = weights_folder(weights, cache_dir)
        config = AutoConfig.from_pretrained(folder)
        if (folder / "generation_config.json").is_file():
            generation_config = GenerationConfig.from_pretrained(folder)
        else:
            generation_config = GenerationConfig.from_model_config(config)
        is_gguf = local_path(weights, cache_dir).suffix == ".gguf"
        return folder, read_tokenizer(folder) if is_gguf else _tokenizer(folder, weights), config, generation_config


def total_memory_bytes(device: torch.device) -> int:
    """Return the memory of `device` in bytes: that of the GPU, or the memory that this process may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return memory_bytes()
