"""Kernels as machine code in files: compiled by numba once, afterwards loaded by llvmlite alone.

numba has a cache of its own, but to use it numba must be imported and its tables of types be filled, most of a second at
every start; and it does not notice a change in a function that a kernel calls.
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

_ENTRY = "tailrace_kernel"
_engines: list[Any] = []  # the machine code lives as long as these


def default_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tailrace" / "kernels"


def entry(name: str, make: Callable[[], Any], folder: Path) -> int:
    """The address of the kernel that `make` describes, from `folder` if it is there. An unwritable folder is no error."""
    path = folder / f"{name}-{_fingerprint()}.o"
    code = _kept(path)
    if code is None:
        code = _compile(make())
        _keep(path, code)
    return _load(code)


@cache
def _fingerprint() -> str:
    """Of everything that decides about the code: the kernels' sources, the compilers, the processor."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(source.read_bytes())
    for part in (version("numba"), version("llvmlite"), binding.get_host_cpu_name(), _features()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:24]


def _features() -> str:
    return str(binding.get_host_cpu_features().flatten())


def _kept(path: Path) -> bytes | None:
    """What _keep wrote there, if it is still whole: broken code could end the process."""
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            return content[32:]
    return None


def _keep(path: Path, code: bytes) -> None:
    """Whole or not at all, also when two processes do it at once."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(file.name, path)


@cache
def _machine() -> Any:
    """As numba sets it up: this processor, code that may lie anywhere."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_triple(binding.get_process_triple())
    return target.create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=_features(),
        opt=3,
        reloc="static" if target.name.startswith("x86") else "default",
        codemodel="jitdefault",
        jit=True,
    )


def _compile(function: Any) -> bytes:
    """`function` takes the address of its arguments. Its C entry calls numba's function and nothing of Python."""
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
    # numba's own C entry needs parts of numba at run time: without linkage it is dropped.
    for defined in module.functions:
        if not defined.is_declaration and defined.name != _ENTRY:
            defined.linkage = "internal"
    passes = binding.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, binding.create_pass_builder(_machine(), binding.create_pipeline_tuning_options()))
    return bytes(_machine().emit_object(module))


def _load(code: bytes) -> int:
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _machine())
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(_ENTRY))
