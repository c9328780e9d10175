"""Compares the size of a GGUF file with its header, to recognise a file that is cut."""

from pathlib import Path

from inference_server.weights.fetching.disk_space import sized
from inference_server.weights.gguf_header import GgufHeader, read_header
from tailrace_shared.config_errors import ConfigurationError

_ALIGNMENT = 32  # bytes, unless the metadata has another number


def whole_header(path: Path) -> GgufHeader:
    """Return the header of a complete GGUF file.

    Raises:
        ConfigurationError: The file is cut, or is not a GGUF file.
    """
    header = read_header(path)
    actual = path.stat().st_size
    alignment = header.metadata.get("general.alignment") or _ALIGNMENT
    start = -(-(actual - header.data_bytes) // alignment) * alignment
    expected = start + max(
        (tensor.offset + _num_bytes(tensor.type_number, tensor.num_weights) for tensor in header.tensors), default=0
    )
    if actual < expected:
        raise ConfigurationError(
            f"cannot load {path.name}: the file is cut: it has {sized(actual)} of {sized(expected)}: download it again"
        )
    return header


def _num_bytes(type_number: int, num_weights: int) -> int:
    """Return the size of a tensor; 0 if its format is not known."""
    from gguf.constants import GGML_QUANT_SIZES  # takes a tenth of a second to import

    block_weights, block_bytes = next(
        (sizes for kind, sizes in GGML_QUANT_SIZES.items() if kind == type_number), (1, 0)
    )
    return int(num_weights // block_weights * block_bytes)
