"""Converts a GGUF file to a folder with 16-bit weights, for engines that read no GGUF files: vLLM and embeddings."""

import shutil
from pathlib import Path

import torch

from inference_server import garbage
from inference_server.progress import progress
from inference_server.weights.disk.atomic_folder import atomic_directory
from inference_server.weights.gguf.description import describe_file
from inference_server.weights.gguf.load import load_module
from inference_server.weights.loading_lock import LOADING


def convert_file(path: Path, cache_dir: Path) -> Path:
    """Return a folder with the file's configuration, tokenizer and bfloat16 weights. Creates it if it does not exist.

    Raises:
        ConfigurationError: The file is damaged or not supported, or the cache cannot be written.
    """
    description = describe_file(path, cache_dir)
    folder = cache_dir / "converted" / description.name
    if folder.is_dir():
        return folder
    with (
        atomic_directory(folder) as unfinished,
        progress(f"converting {path.name} to bfloat16 (once; the result stays in {folder.parent})"),
        LOADING,
        garbage.paused(),
    ):
        model = load_module(path, description, "bfloat16", torch.device("cpu"), attention_name="eager")
        model.save_pretrained(unfinished)
        for file in description.iterdir():
            if file.suffix != ".safetensors":
                shutil.copy2(file, unfinished / file.name)
    return folder
