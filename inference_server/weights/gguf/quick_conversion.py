"""Speeds up transformers' conversion of GGUF files without changing its result.

transformers reads a file three times with gguf's reader, which makes several numpy arrays for each token of the
vocabulary. transformers builds gguf's map of tensor names again for every module of the model. gguf dequantises 16 rows
at a time. The replacements cache the reader and the map, and dequantise whole tensors of three formats with torch.
"""

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, get_tensor_name_map
from gguf import dequantize as slow_dequantize

from inference_server.weights.replaced import replaced

_LENGTH = struct.Struct("<Q")
_ARRAY_HEAD = struct.Struct("<IQ")  # the elements' type and number


class QuickReader(GGUFReader):  # type: ignore[misc]  # gguf has no type information
    """Reads a GGUF file as gguf's reader does, but faster.

    The strings of a metadata array are memoryviews instead of numpy arrays. An array's numbers are read together.
    """

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], Any, list[Any]]:
        """Read the metadata value at byte `orig_offs`.

        Returns its size in bytes, its parts, the indices of the parts that are values, and its types.
        """
        if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)  # type: ignore[no-any-return]
        content = self.data.data  # a memoryview, because slicing numpy's class for mapped files is slow
        element, count = _ARRAY_HEAD.unpack_from(content, orig_offs)
        start, parts = orig_offs + _ARRAY_HEAD.size, list[Any]()
        if element == GGUFValueType.STRING:
            end, parts = _strings(content, start, count)
        elif (dtype := self.gguf_scalar_to_np.get(element)) is not None:
            values = np.frombuffer(content, dtype, count, start)
            end, parts = start + values.nbytes, list(values.reshape(-1, 1))
        else:
            return super()._get_field_parts(orig_offs, raw_type)  # type: ignore[no-any-return]
        types = [GGUFValueType.ARRAY, GGUFValueType(element)]
        return end - orig_offs, parts, range(count), types if count else types[:1]


def _strings(content: memoryview, offset: int, count: int) -> tuple[int, list[memoryview]]:
    """Return the offset after `count` strings that begin at `offset`, and the bytes of each string."""
    strings = []
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(content, offset)
        offset += _LENGTH.size + length
        strings.append(content[offset - length : offset])
    return offset, strings


def dequantize(data: Any, tensor_type: GGMLQuantizationType) -> Any:
    """Return a tensor's weights as a float32 array, bit-identical to those of gguf.dequantize.

    Args:
        data: (…, bytes of a row) uint8, or the numbers themselves if the type is a float type.
        tensor_type: GGUF's number format. torch dequantises Q4_0, Q4_1 and Q8_0 with several threads, gguf the others.

    Raises:
        NotImplementedError: gguf does not dequantise this format.
    """
    quick = _QUICK.get(tensor_type)
    if quick is None:
        return slow_dequantize(data, tensor_type)
    block_bytes = gguf.GGML_QUANT_SIZES[tensor_type][1]
    blocks = torch.from_numpy(np.array(data)).view(-1, block_bytes)
    return quick(blocks).view(*data.shape[:-1], -1).numpy()


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    return _halves(blocks, 0) * (_nibbles(blocks[:, 2:]) - 8)


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    return (_halves(blocks, 0) * _nibbles(blocks[:, 4:])).add_(_halves(blocks, 2))


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return _halves(blocks, 0) * blocks[:, 2:].view(torch.int8)


def _halves(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """Return the float16 number at byte `start` of each block, (num_blocks, 1) float32."""
    return blocks[:, start : start + 2].view(torch.float16).float()


def _nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Return 4-bit codes, the low halves of all bytes first, (num_blocks, 32) int8."""
    return torch.cat([codes & 15, codes >> 4], dim=1).view(torch.int8)


_QUICK = {
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q4_1: _q4_1,
    GGMLQuantizationType.Q8_0: _q8_0,
}


@contextmanager
def quick_conversion() -> Iterator[None]:
    """Replace parts of gguf with faster ones while transformers converts a file. The caller holds loading_lock.LOADING.

    If another release of transformers or gguf does not use the replaced names, the conversion runs at its usual speed.
    """
    import transformers
    from transformers import modeling_gguf_pytorch_utils  # takes 0.5 s: not imported by starts that convert nothing

    with ExitStack() as replacements:
        for name, quick in (
            ("GGUFReader", cache(QuickReader)),
            ("get_tensor_name_map", cache(get_tensor_name_map)),
            ("dequantize", dequantize),
        ):
            replacements.enter_context(replaced(gguf, name, quick))
        # transformers' GGUF module ignores the setting that turns off progress bars, which would appear between log lines.
        replacements.enter_context(replaced(modeling_gguf_pytorch_utils, "tqdm", transformers.logging.tqdm))
        yield
