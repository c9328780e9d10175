"""Runs llama.cpp, built for this machine's vector units, on the GGUF file through llama-cpp-python's own server."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.environments import Environment, cpu_flags
from benchmarks.peers.base import HttpClient, Model, Peer, Running, Stopwatch
from benchmarks.processes import BENCH, Child, free_port, wait_for

VERSION = "0.3.36"
_READY_SECONDS = 120.0
# CMake's options, by the CPU flag that each requires.
_OPTIONS = {
    "avx": "GGML_AVX",
    "avx2": "GGML_AVX2",
    "fma": "GGML_FMA",
    "f16c": "GGML_F16C",
    "bmi2": "GGML_BMI2",
    "avx512f": "GGML_AVX512",
    "avx512_vbmi": "GGML_AVX512_VBMI",
    "avx512vbmi": "GGML_AVX512_VBMI",
    "avx512_vnni": "GGML_AVX512_VNNI",
    "avx512_bf16": "GGML_AVX512_BF16",
}
# Some virtual machines report AMX and then crash in it.
_NEVER = ("GGML_AMX_TILE", "GGML_AMX_INT8", "GGML_AMX_BF16")
_VERSIONS = "from importlib.metadata import version; print(version('llama-cpp-python'))"


def cmake_args(flags: set[str]) -> str:
    """Return the CMake options for a CPU with these flags.

    Empty for CPUs without AVX2: llama.cpp's build then selects the instruction sets itself.
    """
    if "avx2" not in flags:
        return ""
    wanted = sorted({option for flag, option in _OPTIONS.items() if flag in flags})
    on, off = [f"-D{option}=ON" for option in wanted], [f"-D{option}=OFF" for option in _NEVER]
    return " ".join(["-DGGML_NATIVE=OFF", *on, *off])


class LlamaCpp(Peer):
    name = "llama.cpp"
    title = "llama.cpp server"
    weights = "int4"
    not_applicable = {"arrival": "its server computes one request at a time"}

    def __init__(self, model: Model) -> None:
        self.cmake_args = cmake_args(cpu_flags())
        self.environment = Environment("llama_cpp", f"llama-cpp-python=={VERSION} {self.cmake_args}")
        super().__init__(model, self.environment.python)

    def prepare(self) -> None:
        if self.environment.is_ready:
            return
        self.environment.create()
        self.environment.pip(
            "install",
            *("--no-binary", "llama-cpp-python", f"llama-cpp-python[server]=={VERSION}"),
            environment={
                "CMAKE_ARGS": self.cmake_args,
                "CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0))),
            },
        )
        self.environment.finish()

    def versions(self) -> dict[str, str]:
        return {"llama-cpp-python": self.environment.output(_VERSIONS), "CMAKE_ARGS": self.cmake_args}

    @contextmanager
    def running(self, log: Path) -> Iterator[Running]:
        port, threads = free_port(), str(len(os.sched_getaffinity(0)))
        command = [
            str(self.python),
            *("-m", "llama_cpp.server", "--model", str(self.model.gguf)),
            *("--n_ctx", "4096", "--n_threads", threads, "--n_threads_batch", threads),
            # Otherwise a new request would abort the running one.
            *("--interrupt_requests", "false"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ]
        watch = Stopwatch()
        child = Child(command, log, {}, cwd=BENCH)
        try:
            wait_for(f"http://127.0.0.1:{port}/v1/models", [child], _READY_SECONDS)
            client = HttpClient(port, "llama-cpp", log, logit_bias={"0": -100.0, "2": -100.0})
            yield Running(children={"server": child}, clients={"rest": client}, ready_s=watch.seconds())
        finally:
            child.stop()
