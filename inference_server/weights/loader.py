"""Weights and tokenizers from a hub, a folder or a GGUF file, in the precision asked for. bitsandbytes is used only here.

Slow phases are logged as they go on. Nothing is unpickled: safetensors or GGUF only, and no code from a hub is run. The
models of transformers take more than a second to import: only when one is loaded.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import enable_progress_bars

from inference_server.attention import paged as attention
from inference_server.precision import Precision, activation_dtype, resolve_precision
from inference_server.serving.catalog import Weights
from inference_server.weights.atomic_folder import made_once
from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)

_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
# The same weights again, in another layout.
_HUB_FILES_LEFT_OUT = ["consolidated*", "original/*"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    model: Any  # of transformers, attending through attention.NAME
    tokenizer: Any
    precision: Precision  # in force


def silence_libraries() -> None:
    """Progress bars and per-call warnings of the libraries below; this module logs progress itself."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # What is left to tell goes the way of the server's own lines.
    transformers.logging.disable_default_handler()
    transformers.logging.enable_propagation()
    logging.getLogger("huggingface_hub").handlers.clear()
    enable_progress_bars()  # of the hub, which transformers switched off with its own: downloads are long
    # bitsandbytes warns of a cast in every linear of every step where activations are not float16.
    for name in ("bitsandbytes", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).setLevel(logging.ERROR)


def load_model(
    weights: Weights,
    precision: Precision,
    *,
    device: torch.device,
    cache_dir: Path,
    int8_threshold: float = 0.0,
    attention_name: str = attention.NAME,
) -> LoadedModel:
    """Load one model. Raises ConfigurationError with what to do if the weights cannot be had.

    An int4 model comes in float32: `linears` finds its integers when it packs the layers.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    attention.register()
    precision = resolve_precision(precision, device)
    with _naming(weights):
        folder = local_folder(weights, cache_dir)
        quantization = None
        if precision == "bitsandbytes-int8":
            quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=int8_threshold)
        verb = "quantising" if quantization else "loading"
        with progress(f"{verb} {weights} as {precision}"):
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                output_loading_info=True,
                dtype=activation_dtype(precision, device),
                quantization_config=quantization,
                attn_implementation=attention_name,
                device_map={"": device},
                use_safetensors=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder)
        # transformers fills what is missing with random numbers and goes on.
        if missing := sorted({*map(str, report["missing_keys"]), *map(str, report["mismatched_keys"])}):
            raise ConfigurationError(
                f"{weights} lacks {len(missing)} tensors or has them in other shapes: {missing[0]}"
            )
    return LoadedModel(model.eval(), tokenizer, precision)


def load_description(weights: Weights, cache_dir: Path) -> tuple[Path, Any, Any, Any]:
    """Folder, tokenizer, config and generation config, without the weights. Raises as load_model does."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    with _naming(weights):
        folder = local_folder(weights, cache_dir)
        config = AutoConfig.from_pretrained(folder)
        if (folder / "generation_config.json").is_file():
            generation_config = GenerationConfig.from_pretrained(folder)
        else:
            generation_config = GenerationConfig.from_model_config(config)
        return folder, AutoTokenizer.from_pretrained(folder), config, generation_config


def local_folder(weights: Weights, cache_dir: Path) -> Path:
    """A folder on disk that transformers can load: downloaded, converted or as it is. Raises as load_model does."""
    with _naming(weights):
        if weights.hub is not None:
            return _download(weights.hub, weights.revision)
        assert weights.path is not None
        return _convert_gguf(weights.path, cache_dir) if weights.is_gguf else weights.path


def _download(hub_id: str, revision: str | None) -> Path:
    try:
        with progress(
            f"getting {hub_id} from the hub (once; then it is taken from the hub's cache)", every_seconds=10.0
        ):
            folder = snapshot_download(
                hub_id, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_FILES_LEFT_OUT
            )
        return Path(folder)
    except GatedRepoError:
        raise ConfigurationError(
            f"{hub_id} is gated: accept its licence on the hub, then set HF_TOKEN to an access token of that account"
        ) from None
    except RevisionNotFoundError:
        raise ConfigurationError(f"{hub_id} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise ConfigurationError(
            f"the hub has no model {hub_id}, or it is private: check the id, and set HF_TOKEN if it needs one"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ConfigurationError(
            f"{hub_id} is not in the local cache and the hub was not reached: unset HF_HUB_OFFLINE or check the network, "
            "or point the catalog's source at a folder"
        ) from None
    except Exception as error:  # the HTTP client has a tree of its own, and it changes from release to release
        logger.debug("downloading %s failed", hub_id, exc_info=True)
        raise ConfigurationError(f"downloading {hub_id} failed: {_first_line(error)}") from None


def _convert_gguf(path: Path, cache_dir: Path) -> Path:
    """Safetensors of a GGUF file, made once: reading GGUF takes about 20 s for a small model, the result about 1 s."""
    folder = cache_dir / "converted" / f"{path.stem}-{_fingerprint(path)}"
    if folder.is_dir():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with (
        made_once(folder) as unfinished,
        progress(f"converting {path.name} (once; the result stays in {folder.parent})"),
    ):
        source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        # float32 holds a dequantised weight exactly; a later load rounds it once, to the precision asked for.
        model = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer.save_pretrained(unfinished)
        model.save_pretrained(unfinished)
    return folder


def _fingerprint(path: Path) -> str:
    """Changes when the file does, or the library whose format the result has."""
    status = path.stat()
    facts = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {transformers.__version__}"
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


@contextmanager
def _naming(weights: Weights) -> Iterator[None]:
    """Say which weights it was that could not be loaded."""
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:  # a broken file shows itself in whatever way its reader happens to stumble
        logger.debug("loading %s failed", weights, exc_info=True)
        raise ConfigurationError(f"cannot load {weights}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


@contextmanager
def progress(what: str, *, every_seconds: float = 2.0) -> Iterator[None]:
    """Log that something long began, that it goes on, and how many seconds it took."""
    started = time.monotonic()
    finished = threading.Event()

    def tick() -> None:
        while not finished.wait(every_seconds):
            logger.info("… %s: %.0f s so far", what, time.monotonic() - started)

    logger.info("%s", what)
    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        finished.set()
        ticker.join()
    logger.info("%s: done in %.1f s", what, time.monotonic() - started)


def total_memory_bytes(device: torch.device) -> int:
    """Memory of the device the models are on."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
