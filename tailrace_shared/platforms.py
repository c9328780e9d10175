"""Describes platforms on which the inference server does not run, and alternatives. docs/platforms.md has the list."""

import platform
import sys

WINDOWS_SENTENCE = "The inference server does not run on Windows itself: use WSL 2 or Docker Desktop."
METAL_CLAUSE = "Tailrace does not compute on Apple's GPUs (Metal): use cpu or auto, which use the kernels for Arm CPUs"
# CPU architectures for which PyTorch publishes wheels, by sys.platform.
_TORCH_MACHINES = {"linux": ("x86_64", "aarch64"), "darwin": ("arm64",)}


def is_windows() -> bool:
    """Return True on Windows, outside WSL."""
    return sys.platform == "win32"


def why_torch_is_missing() -> str | None:
    """Return a sentence if this is Linux or macOS on a CPU architecture without a wheel of torch; otherwise None."""
    machine = platform.machine()
    if machine in _TORCH_MACHINES.get(sys.platform, (machine,)):
        return None
    if sys.platform == "darwin":
        return (
            "PyTorch has no package for this Python, which is for Macs with Intel processors: with Apple silicon, use a "
            "Python for arm64. On an Intel Mac, use Docker Desktop."
        )
    return f"PyTorch has no package for {machine} processors: use a machine with a 64-bit x86 or Arm processor."
