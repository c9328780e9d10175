"""Finds the default model's GGUF file and writes its weights as safetensors, for peers that do not read GGUF files.

`python -m benchmarks.default_model FOLDER` writes the safetensors to `FOLDER` if they are missing. It prints the path of
the GGUF file.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.base import Model
from benchmarks.processes import BENCH, ROOT

_FOLDER = BENCH / "model"


def default_model() -> Model:
    """Return the paths of the default model's files. Writes the safetensors on the first call, in about 10 seconds.

    A separate process writes them, because importing torch takes much memory.
    """
    command = [sys.executable, "-m", "benchmarks.default_model", str(_FOLDER)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Model(gguf=Path(done.stdout.splitlines()[-1]), folder=_FOLDER)


def write_safetensors(file: Path, folder: Path) -> None:
    """Write a GGUF file's model to the new folder `folder` as hubs store models: bfloat16 weights and the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from inference_server.weights.gguf.quick_conversion import quick_conversion

    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    with quick_conversion():
        model = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
    model.save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(**source).save_pretrained(unfinished)
    unfinished.rename(folder)


def _main(folder: Path) -> None:
    from inference_server.serving.catalog import read_catalog
    from inference_server.settings.models import DEFAULT_CATALOG
    from inference_server.weights.loader import silence_libraries

    silence_libraries()
    file = read_catalog(DEFAULT_CATALOG)[0].weights.path
    if file is None:
        raise SystemExit("the package of the default model is not installed: run make install")
    if not any(folder.glob("*.safetensors")):
        shutil.rmtree(folder, ignore_errors=True)
        write_safetensors(file, folder)
    print(file)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
