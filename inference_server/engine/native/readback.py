"""Transfers the sampled tokens of a step to the host without delaying the host or the next step.

A copy from a GPU is complete only when the CUDA event recorded after it has occurred. Until then the device fills a
pinned buffer, and the host may launch the next step, which uses other buffers.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class StepBuffers:
    """Buffers of one step in flight: the keys of its random numbers, and its token ids or markers.

    The host must read the tokens of a step before the buffers are used for another step.
    """

    def __init__(self, max_rows: int, device: torch.device) -> None:
        """Allocate the buffers. Host buffers are pinned if `device` is a GPU."""
        is_cuda = device.type == "cuda"
        self._token_ids = torch.zeros(max_rows, dtype=torch.int64, pin_memory=is_cuda)
        self._keys = torch.zeros((max_rows, 2), dtype=torch.int32, pin_memory=is_cuda)
        self._device_keys = torch.zeros((max_rows, 2), dtype=torch.int32, device=device)
        self._keys_array: NDArray[np.int32] = self._keys.numpy()
        self._event = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]
        self._num_rows = 0

    def upload_keys(self, keys: NDArray[np.int32]) -> Tensor:
        """Return a copy of the keys on the device, int32 of shape (num_rows, 2)."""
        count = len(keys)
        self._keys_array[:count] = keys
        return self._device_keys[:count].copy_(self._keys[:count], non_blocking=True)

    def start(self, token_ids: Tensor) -> None:
        """Launch the transfer of `token_ids`, int64 of shape (num_rows,) on the device."""
        self._num_rows = len(token_ids)
        self._token_ids[: self._num_rows].copy_(token_ids, non_blocking=True)
        if self._event is not None:
            self._event.record()

    def read(self) -> list[int]:
        """Wait for the transfer, and return the token ids. Raises the error of the device if the step failed."""
        if self._event is not None:
            self._event.synchronize()
        token_ids: list[int] = self._token_ids[: self._num_rows].tolist()
        return token_ids
