"""Keeps the kernels' machine code in files: numba compiles a kernel once, later starts load it with llvmlite only.

numba has its own cache. Using it takes most of a second at every start, because numba has to be imported and its
tables of types filled. It also does not detect a change in a function that a kernel calls.
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
from inference_server.kernels.isa import cpu as isa

_ENTRY = "tailrace_kernel"
_engines: list[Any] = []  # LLVM engines that own the loaded machine code; kept until the process ends


def default_folder() -> Path:
    """Return the cache folder of this user: $XDG_CACHE_HOME/tailrace/kernels, by default below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tailrace" / "kernels"


def entry(name: str, make: Callable[[], Any], folder: Path) -> int:
    """Load a kernel from `folder`, or compile it and keep it there. A folder that cannot be written is ignored.

    Args:
        name: The kernel's name, the first part of the file's name.
        make: Returns the Python function that numba compiles.
        folder: The cache folder.

    Returns:
        The address of the machine code, which stays loaded until the process ends.
    """
    path = folder / f"{name}-{_fingerprint()}.o"
    code = _read(path)
    if code is None:
        code = _compile(make())
        _write(path, code)
    return _load(code)


def kernel_sources() -> list[Path]:
    """Return every source file of the kernels package, sorted. A change in any of them invalidates the cache."""
    return sorted(path for folder in kernels.__path__ for path in Path(folder).rglob("*.py"))


@cache
def _fingerprint() -> str:
    """Return a hash of everything the code depends on: the kernels' sources, the compilers and the CPU."""
    digest = hashlib.sha256()
    for source in kernel_sources():
        digest.update(source.read_bytes())
    for part in (version("numba"), version("llvmlite"), isa.llvm_cpu_name(), isa.llvm_feature_string()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:24]


def _read(path: Path) -> bytes | None:
    """Return the code that _write stored, or None if it is missing or damaged: damaged code could end the process."""
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            return content[32:]
    return None


def _write(path: Path, code: bytes) -> None:
    """Store the code with its checksum in one step, so that no other process reads a partial file."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(file.name, path)


@cache
def _machine() -> Any:
    """Return LLVM's target machine of this CPU, configured as in numba: for position-independent code."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_triple(binding.get_process_triple())
    return target.create_target_machine(
        cpu=isa.llvm_cpu_name(),
        features=isa.llvm_feature_string(),
        opt=3,
        reloc="static" if target.name.startswith("x86") else "default",
        codemodel="jitdefault",
        jit=True,
    )


def _compile(function: Any) -> bytes:
    """Compile `function`, which takes the address of its argument block, to an object file with a C entry point.

    The entry point calls numba's function, without using Python's C API.
    """
    from numba import cfunc, types

    compiled = cfunc(types.void(types.int64), error_model="numpy")(function)
    module = binding.parse_assembly(compiled.inspect_llvm())
    native = compiled.native_name.removeprefix("cfunc.")
    module.link_in(
        binding.parse_assembly(f'''
            declare i32 @"{native}"(ptr, ptr, i64)
            define void @{_ENTRY}(i64 %block) {{
              %result = alloca ptr
              %error = alloca ptr
              %status = call i32 @"{native}"(ptr %result, ptr %error, i64 %block)
              ret void
            }}''')
    )
    # numba's own C entry point needs parts of numba at run time. Internal linkage lets the optimiser remove it.
    for defined in module.functions:
        if not defined.is_declaration and defined.name != _ENTRY:
            defined.linkage = "internal"
    passes = binding.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, binding.create_pass_builder(_machine(), binding.create_pipeline_tuning_options()))
    return bytes(_machine().emit_object(module))


def _load(code: bytes) -> int:
    """Load an object file into this process and return the address of its entry point."""
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _machine())
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(_ENTRY))
