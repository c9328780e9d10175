"""Compares GGUF files in Tailrace, transformers and llama.cpp: python -m benchmarks.features.gguf_formats FILE…

For each file, the script prints two perplexities of the tests' corpus. One is that of the engine's own forward pass in
the precision that is nearest to the file. The other is that of transformers in float32 with the dequantised weights.

The script also loads each file twice, each time in a separate process. It prints the seconds of both loads, the disk
space (file and cache) relative to the file, and the memory of the packed weights. The last columns are the peak memory
of both loads relative to the packed weights, without the imported libraries.

`--llama-cpp PYTHON` adds the seconds of a load by llama.cpp, with an interpreter that has llama-cpp-python. `--times`
leaves out the perplexities.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load.workload import CORPUS

WINDOW = 512
NUM_TOKENS = 2048
MB = 1 << 20

# Runs in a separate process: loads a file and prints the values of `Load` as a JSON array.
_LOAD = """
import json, sys, time
from pathlib import Path
import accelerate, gguf, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.llama import modeling_llama
from inference_server.settings.server import Settings
from inference_server.weights.loader import silence_libraries
from inference_server.weights.prepare import prepare
from inference_server.weights.source import Weights

def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

silence_libraries()
path, precision, cache_dir = sys.argv[1:]
before, started, used = peak(), time.monotonic(), time.process_time()
prepared = prepare(Weights(path=Path(path)), precision, torch.device("cpu"), Settings(device="cpu", cache_dir=cache_dir))
seconds, cpu = time.monotonic() - started, time.process_time() - used
print(json.dumps([seconds, cpu, prepared.num_bytes, peak() - before]))
"""
_LOAD_LLAMA_CPP = """
import sys, time
import llama_cpp
started = time.monotonic()
model = llama_cpp.Llama(sys.argv[1], n_ctx=512, use_mmap=False, verbose=False)
print(time.monotonic() - started)
"""


@dataclass(frozen=True, slots=True)
class Load:
    """The seconds, seconds of CPU time, bytes of packed weights and bytes of additional peak memory of one load."""

    seconds: float
    cpu_seconds: float
    num_bytes: int
    peak_bytes: int


def load(path: Path, precision: str, cache_dir: Path) -> Load:
    """Load a file in a new process, and return the figures of the load."""
    command = [sys.executable, "-c", _LOAD, str(path), precision, str(cache_dir)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Load(*json.loads(done.stdout.splitlines()[-1]))


def load_by_llama_cpp(python: str, path: Path) -> float:
    """Return the seconds of a load by llama.cpp. mmap is off, so it copies the weights into memory, as Tailrace does."""
    done = subprocess.run([python, "-c", _LOAD_LLAMA_CPP, str(path)], check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def perplexity(token_ids: list[int], logits: Callable[[list[int]], Any]) -> float:
    """Return the perplexity over consecutive windows. `logits` returns shape (len(window), vocab_size)."""
    import torch

    loss, count = 0.0, 0
    with torch.inference_mode():
        for first in range(0, len(token_ids), WINDOW):
            window = token_ids[first : first + WINDOW]
            targets = torch.tensor(window[1:])
            loss += float(torch.nn.functional.cross_entropy(logits(window)[:-1].float(), targets, reduction="sum"))
            count += len(targets)
    return math.exp(loss / count)


def of_engine(path: Path, precision: Any, cache_dir: Path) -> tuple[float, list[int], Any]:
    """Return the perplexity with the engine's kernels, the measured tokens of the corpus, and the tokenizer."""
    import torch

    from inference_server.attention.kv_cache import BLOCK_SIZE
    from inference_server.model.runner import ModelRunner, PromptPiece
    from inference_server.precision import cache_dtype
    from inference_server.settings.server import Settings
    from inference_server.weights.prepare import prepare
    from inference_server.weights.source import Weights

    settings = Settings(device="cpu", cache_dir=cache_dir)
    prepared = prepare(Weights(path=path), precision, torch.device("cpu"), settings)
    token_ids = prepared.tokenizer(CORPUS.read_text(), add_special_tokens=False)["input_ids"][:NUM_TOKENS]
    blocks = range(1, 1 + -(-WINDOW // BLOCK_SIZE))
    runner = ModelRunner(prepared.model, num_blocks=len(blocks), cache_dtype=cache_dtype(precision))

    def logits(window: list[int]) -> Any:
        rows = []
        for position, token in enumerate(window):
            piece = PromptPiece(list(blocks), position, [token], wants_logits=True)
            rows.append(runner.prefill([piece]).clone())
        return torch.cat(rows)

    return perplexity(token_ids, logits), token_ids, prepared.tokenizer


def of_dequantised(path: Path, token_ids: list[int]) -> float:
    """Return the perplexity with transformers and the dequantised weights, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    from inference_server.weights.gguf.quick_conversion import quick_conversion

    with quick_conversion():
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
    return perplexity(token_ids, lambda window: model(torch.tensor([window])).logits[0])


def report(path: Path, llama_cpp: str | None, *, measures_quality: bool) -> str:
    """Load a GGUF file twice, measure it, and return its row of the Markdown table."""
    from inference_server.weights.gguf.config import natural_precision

    precision = natural_precision(path)
    with tempfile.TemporaryDirectory() as folder:
        cache_dir = Path(folder)
        first, second = (load(path, precision, cache_dir) for _ in range(2))
        kept = sum(file.stat().st_size for file in (cache_dir / "gguf").rglob("*") if file.is_file())
        size = path.stat().st_size
        cells = [path.stem, precision, f"{size / MB:.0f} MB"]
        if measures_quality:
            ours, token_ids, _ = of_engine(path, precision, cache_dir)
            theirs = of_dequantised(path, token_ids)
            cells += [f"{ours:.3f}", f"{theirs:.3f}", f"{ours / theirs - 1:+.2%}"]
        cells += [f"{one.seconds:.1f} s ({one.cpu_seconds:.1f} s CPU)" for one in (first, second)]
        cells += [f"{load_by_llama_cpp(llama_cpp, path):.1f} s"] if llama_cpp else []
        cells += [f"{(size + kept) / size:.2f}", f"{second.num_bytes / MB:.0f} MB"]
        cells += [f"{one.peak_bytes / one.num_bytes:.2f}" for one in (first, second)]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--llama-cpp", metavar="PYTHON")
    parser.add_argument("--times", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    quality = [] if arguments.times else ["perplexity", "of dequantised weights", "difference"]
    columns = ["file", "precision", "size", *quality, "first load", "second load"]
    columns += ["llama.cpp's load"] if arguments.llama_cpp else []
    columns += ["disk / file", "packed weights", "peak memory / packed, first", "second"]
    print("| " + " | ".join(columns) + " |", "|---" * len(columns) + "|", sep="\n", flush=True)
    for path in arguments.files:
        print(report(path, arguments.llama_cpp, measures_quality=not arguments.times), flush=True)


if __name__ == "__main__":
    main()
