"""Loads the AMX kernels by name, with the tile shapes they are configured with. Does not import numba unless it compiles.

A kernel receives its tile shapes as the `kernel_data` of its argument block.
"""

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from torch import Tensor

from inference_server.kernels.amx.tile_config import full_tiles
from inference_server.kernels.isa import cpu as isa
from inference_server.kernels.jit.kernel import Kernel, load_kernel

logger = logging.getLogger(__name__)


def _makers() -> dict[str, Callable[[], Any]]:
    """Return the functions that define the kernels, by kernel name. Imports numba."""
    from inference_server.kernels.amx import (
        linear_bf16,
        linear_int4,
        linear_int4_prefill,
        linear_int8,
        prefill_attention,
    )

    return {
        "linear-bf16": partial(linear_bf16.make_bf16, linear_bf16.NARROW),
        "linear-bf16-head": partial(linear_bf16.make_bf16, linear_bf16.ROUNDED),
        "linear-bf16-gated": partial(linear_bf16.make_bf16, linear_bf16.GATED_NARROW),
        "linear-int8": partial(linear_int8.make_int8, False),
        "linear-int8-gated": partial(linear_int8.make_int8, True),
        "linear-int4": partial(linear_int4.make_int4, False),
        "linear-int4-gated": partial(linear_int4.make_int4, True),
        "linear-int4-many": partial(linear_int4_prefill.make_int4_many, False),
        "linear-int4-many-gated": partial(linear_int4_prefill.make_int4_many, True),
        "prefill-attention-float32": partial(prefill_attention.make_attention, False),
        "prefill-attention-bf16": partial(prefill_attention.make_attention, True),
    }


@cache
def amx_kernel(name: str) -> Kernel | None:
    """Return a kernel of the table above; None if the CPU lacks AMX or the kernel cannot be compiled, which is logged."""
    if not isa.has_amx():
        return None
    try:
        return load_kernel(name, lambda: _makers()[name]())
    except Exception as error:  # torch's operations replace the kernel after any error
        message = "the AMX kernel %s cannot be compiled, so torch's slower operations replace it: %s: %s"
        logger.warning(message, name, type(error).__name__, error)
        return None


def load_prefill_attention(is_bf16: bool) -> tuple[Kernel, Tensor] | None:
    """Return the prefill attention kernel and its kernel data, or None if this CPU cannot run it.

    Args:
        is_bf16: True for queries in bfloat16, False for float32.
    """
    found = amx_kernel("prefill-attention-bf16" if is_bf16 else "prefill-attention-float32")
    return None if found is None else (found, full_tiles())
