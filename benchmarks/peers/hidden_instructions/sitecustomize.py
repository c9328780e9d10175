"""Hides instruction sets from Python code that queries torch for them. Python imports this file when a process starts.

vLLM has no switch for its instruction set: it chooses its library by the instruction sets that torch reports.
ATEN_CPU_CAPABILITY does not change that report. The folder of this file is in PYTHONPATH for vLLM with a limit only.
"""

import os
from collections.abc import Callable

# The functions of torch.cpu that return False under a limit, by the limit.
_AMX = ("_is_amx_tile_supported", "_is_amx_fp16_supported", "_init_amx")
_BF16 = (*_AMX, "_is_avx512_bf16_supported")
_VNNI = (*_BF16, "_is_avx512_vnni_supported", "_is_vnni_supported")
_HIDDEN = {
    "avx512-bf16": _AMX,
    "avx512-vnni": _BF16,
    "avx512": _VNNI,
    "avx-vnni": (*_BF16, "_is_avx512_vnni_supported", "_is_avx512_supported"),
    "avx2": (*_VNNI, "_is_avx512_supported"),
}


def _never() -> bool:
    return False


def _hide(names: tuple[str, ...]) -> None:
    import torch.cpu

    hidden: Callable[[], bool] = _never
    for name in names:
        if hasattr(torch.cpu, name):
            setattr(torch.cpu, name, hidden)


if (limit := os.environ.get("TAILRACE_CPU_FEATURES", "")) in _HIDDEN:
    _hide(_HIDDEN[limit])
