"""Runs llama-cpp-python's own server on the GGUF file, with a llama.cpp that was built for this machine."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environments import Environment, SetupFailed
from benchmarks.instruction_sets import InstructionSet
from benchmarks.peers.base import HttpClient, Model, Peer, Running, Stopwatch
from benchmarks.processes import BENCH, Child, free_port, wait_for

VERSION = "0.3.36"
_READY_SECONDS = 120.0
_VERSIONS = "from importlib.metadata import version; print(version('llama-cpp-python'))"
# A prompt of this length is computed by the products of many rows, which use AMX if it is built in.
_TRY = "import llama_cpp as l; l.Llama({path!r}, n_ctx=512, verbose=False).create_completion('a b c d ' * 40, max_tokens=4)"
_TRY_SECONDS = 120.0


# A third of the compile time is for image input, which text models do not use.
_LEFT_OUT = "-DLLAVA_BUILD=OFF"


@dataclass(frozen=True, slots=True)
class Build:
    """A build of llama.cpp: the name of its environment, and CMake's options."""

    name: str
    cmake_args: str


_NATIVE = Build("native", "-DGGML_NATIVE=ON")
# These options override -march=native, which GGML_NATIVE adds.
_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
_WITHOUT_AMX = Build(
    "native-without-amx", f"-DGGML_NATIVE=ON '-DCMAKE_C_FLAGS={_NO_AMX}' '-DCMAKE_CXX_FLAGS={_NO_AMX}'"
)


def builds(limit: InstructionSet | None) -> list[Build]:
    """Return the builds to try, the fastest first.

    The first build uses every instruction set of the CPU. On some virtual machines that report AMX, llama.cpp crashes in
    an AMX instruction. The second build is used there. With a `limit` below AMX, the only build has that instruction
    set and no better one.
    """
    if limit is None or limit.name == "amx":
        return [_NATIVE, _WITHOUT_AMX]
    return [Build(limit.name, " ".join(["-DGGML_NATIVE=OFF", *(f"-D{option}" for option in limit.ggml)]))]


class LlamaCpp(Peer):
    name = "llama.cpp"
    title = "llama.cpp server"
    weights = "int4"
    scenarios = (*Peer.scenarios, "neighbours")
    not_applicable = {"arrival": "its server computes one request at a time"}

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._builds = builds(None)
        self._use(self._builds[0])

    def limit_to(self, limit: InstructionSet) -> None:
        super().limit_to(limit)
        self._builds = builds(limit)
        self._use(self._builds[0])

    def _use(self, build: Build) -> None:
        self.build = build
        self.environment = Environment(f"llama_cpp-{build.name}", f"llama-cpp-python=={VERSION} {build.cmake_args}")
        self.python = self.environment.python

    def prepare(self) -> None:
        for build in self._builds:
            self._use(build)
            if not self.environment.is_ready:
                self._install()
            if (failure := self._failure()) is None:
                return
        raise SetupFailed(failure)

    def _install(self) -> None:
        self.environment.create()
        self.environment.pip(
            "install",
            "--no-cache-dir",  # pip would reuse a wheel that it built with other options
            *("--no-binary", "llama-cpp-python", f"llama-cpp-python[server]=={VERSION}"),
            environment={
                "CMAKE_ARGS": f"{self.build.cmake_args} {_LEFT_OUT}",
                "CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0))),
            },
        )
        self.environment.finish()

    def _failure(self) -> str | None:
        """Return the reason why this build cannot generate a few tokens, or None if it can."""
        command = [str(self.python), "-c", _TRY.format(path=str(self.model.gguf))]
        done = subprocess.run(command, cwd=BENCH, capture_output=True, timeout=_TRY_SECONDS, check=False)
        return f"the build {self.build.name} ends with {done.returncode}" if done.returncode else None

    def versions(self) -> dict[str, str]:
        return {"llama-cpp-python": self.environment.output(_VERSIONS), "CMAKE_ARGS": self.build.cmake_args}

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
