"""Runs compiled kernels of AArch64 under qemu-user.

The emulator's memory is a file that this process and the emulated program map at the same address. Tensors in it therefore
have valid addresses in both, and a kernel's argument block is built as for a kernel of this process.
"""

import ctypes
import mmap
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from inference_server.kernels.emit.module import ENTRY
from tests.support.arm.elf import caller_program, link

ADDRESS, SIZE = 1 << 36, 64 << 20
_CODE, _TENSORS = 4096, 16 << 20  # offsets of the first kernel and of the first tensor
_GAP = 64  # bytes between tensors, which no kernel may change
_FIXED = 0x100000  # MAP_FIXED_NOREPLACE
_TIME_LIMIT = 60  # seconds; a call takes well under one


def program() -> str:
    """Return the path of qemu's program for AArch64.

    Raises:
        RuntimeError: It is not installed. The message names the package.
    """
    found = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if found is None:
        raise RuntimeError("qemu-aarch64 is not installed; on Debian or Ubuntu: apt-get install qemu-user")
    return found


class Emulator:
    """Memory that a kernel and this process share, and calls of kernels. One instance for each process."""

    def __init__(self) -> None:
        self._qemu = program()
        self._file = os.memfd_create("kernel")
        os.ftruncate(self._file, SIZE)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        flags = mmap.MAP_SHARED | _FIXED
        if libc.mmap(ADDRESS, SIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, self._file, 0) != ADDRESS:
            raise OSError(ctypes.get_errno(), f"address {ADDRESS:#x} cannot be mapped")
        self._bytes = torch.frombuffer((ctypes.c_char * SIZE).from_address(ADDRESS), dtype=torch.uint8)
        self._folder = tempfile.TemporaryDirectory()
        self._caller = Path(self._folder.name) / "caller"
        self._caller.write_bytes(caller_program(ADDRESS, SIZE))
        self._caller.chmod(0o700)
        self._kernels: dict[bytes, int] = {}  # addresses, by object file
        self._code_used, self._used = _CODE, _TENSORS
        self._gaps: list[int] = []

    def close(self) -> None:
        """Remove the program. The memory remains mapped until the process ends, as tensors may refer to it."""
        os.close(self._file)
        self._folder.cleanup()

    def forget_tensors(self) -> None:
        """Make the memory of all tensors available again."""
        self._used, self._gaps = _TENSORS, []

    def place(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor in the shared memory, aligned to 64 bytes."""
        size = tensor.numel() * tensor.element_size()
        start = -(-self._used // 64) * 64
        self._used = start + size + _GAP
        if self._used > SIZE:
            raise MemoryError("the tensors exceed the emulator's memory")
        self._bytes[start + size : self._used] = 0xA5
        self._gaps.append(start + size)
        copy = self._bytes[start : start + size].view(tensor.dtype).view(tensor.shape)
        return copy.copy_(tensor)

    def load(self, object_file: bytes) -> int:
        """Place a kernel, from `compile_kernel`, in the shared memory if it is not there yet. Returns its address."""
        if object_file not in self._kernels:
            image, entry = link(object_file, ADDRESS + self._code_used, ENTRY)
            if self._code_used + len(image) > _TENSORS:
                raise MemoryError("the kernels exceed the emulator's memory")
            self._write(self._code_used, image)
            self._code_used += -(-len(image) // 4096) * 4096
            self._kernels[object_file] = entry
        return self._kernels[object_file]

    def call(self, object_file: bytes, block: bytes, cpu: str) -> None:
        """Run a kernel once, on one thread.

        Args:
            object_file: The kernel, from `compile_kernel`.
            block: Its argument block, whose addresses lie in this memory.
            cpu: qemu's name of the CPU to emulate.

        Raises:
            RuntimeError: The kernel crashed, or wrote beyond the end of a tensor.
        """
        self._write(0, self.load(object_file).to_bytes(8, "little") + (ADDRESS + 64).to_bytes(8, "little"))
        self._write(64, block)
        command = [self._qemu, "-cpu", cpu, str(self._caller)]
        done = subprocess.run(command, stdin=self._file, capture_output=True, timeout=_TIME_LIMIT, text=True)
        if done.returncode:
            raise RuntimeError(f"the kernel ended with {done.returncode}: {done.stderr.strip()}")
        if any((self._bytes[gap : gap + _GAP] != 0xA5).any() for gap in self._gaps):
            raise RuntimeError("the kernel wrote beyond the end of a tensor")

    def _write(self, offset: int, content: bytes) -> None:
        self._bytes[offset : offset + len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
