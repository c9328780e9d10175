"""Stores the kernels' machine code in files. A kernel is compiled once, and later starts only load it.

Container images contain precompiled kernels for the instruction sets of their architecture (ahead_of_time.py).
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llvmlite import binding

from inference_server import kernels
from inference_server.kernels.emit.module import ENTRY, Emit, Target, compile_kernel, target_machine
from inference_server.kernels.isa.choice import target
from inference_server.kernels.isa.instruction_set import InstructionSet

_engines: list[Any] = []  # LLVM engines that own the loaded machine code; kept until the process ends


def default_folder() -> Path:
    """Return the cache folder of this user: $XDG_CACHE_HOME/tailrace/kernels, by default below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tailrace" / "kernels"


def shipped_folder() -> Path:
    """Return the folder in this package with kernels that were compiled in advance. It may be missing."""
    return Path(kernels.__path__[0]) / "compiled"


def entry(name: str, make: Callable[[], Emit], isa: InstructionSet, folder: Path) -> int:
    """Load a kernel from the shipped folder or from `folder`, or compile it and store it in `folder`.

    If `folder` cannot be written, the kernel is compiled again at the next start.

    Args:
        name: The kernel's name, the first part of the file's name.
        make: Returns the function that generates the kernel. It is called only if the kernel must be compiled, because
            importing the generators takes a tenth of a second.
        isa: The instruction set to compile for.
        folder: The cache folder.

    Returns:
        The address of the machine code, which stays loaded until the process ends.
    """
    cpu = target(isa)
    code = _read(path_of(shipped_folder(), name, isa)) or _read(path_of(folder, name, isa))
    if code is None:
        code = compile_kernel(make(), isa, cpu)
        write(path_of(folder, name, isa), code)
    return _load(code, cpu)


def path_of(folder: Path, name: str, isa: InstructionSet) -> Path:
    """Return the path of a kernel's file. The file's name contains a hash of everything that determines the code."""
    return folder / f"{name}.{isa.name}-{_fingerprint(target(isa))}.o"


def kernel_sources() -> list[Path]:
    """Return every source file of the kernels package, sorted. A change in any of them invalidates the cache."""
    return sorted(path for folder in kernels.__path__ for path in Path(folder).rglob("*.py"))


@cache
def _fingerprint(cpu: Target) -> str:
    """Return a hash of everything the code depends on: the kernels' sources, the compiler and the target CPU."""
    digest = hashlib.sha256()
    for source in kernel_sources():
        digest.update(source.read_bytes())
    for part in (version("llvmlite"), cpu.triple, cpu.cpu, cpu.features):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:24]


def _read(path: Path) -> bytes | None:
    """Return the code that `write` stored, or None if it is missing or damaged.

    Damaged code could crash the process.
    """
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            return content[32:]
    return None


def write(path: Path, code: bytes) -> None:
    """Store the code with its checksum in one step, so that no other process reads a partial file."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(file.name, path)


def _load(code: bytes, cpu: Target) -> int:
    """Load an object file into this process and return the address of its entry point."""
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), target_machine(cpu))
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(ENTRY))
