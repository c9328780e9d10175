"""Samples the tokens of a batch on the device: the host launches the operations and does not wait for their results.

The tokens equal those of sampler.py. A row that needs the host gets a negative marker instead of a token. When the host
reads the marker, it samples this row again with sampler.py. Grammars and log probabilities are not supported.
"""

from collections.abc import Collection
from collections.abc import Sequence as Items

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference_server.engine.native import gumbel as noise
from inference_server.engine.native.penalties import BiasedRows, PenalisedRows, PenaltyState, penalty_strengths
from inference_server.engine.native.sampler import Row
from inference_server.engine.native.shortlist import (
    SHORTLIST,
    Limits,
    Shortlist,
    is_narrowed,
    logit_depths,
    without_unlikely,
)
from inference_server.generation import SamplingParams

# Markers that replace token ids.
UNSETTLED = -1  # top_k or top_p needs more tokens than the shortlist has
NOT_FINITE = -2  # the largest logit is NaN or infinite


class DeviceSampler:
    """Sampler of one batch, whose rows stay the same from step to step."""

    def __init__(self, rows: Items[Row], device: torch.device, to_sort: Collection[int] = ()) -> None:
        """Copy the rows' parameters to the device.

        Args:
            rows: Sampling state of each row, at its first position. `allowed` must be None.
            device: The device of the logits.
            to_sort: Rows whose whole vocabulary is sorted, as for rows with a top_k above SHORTLIST. Other rows with a
                shortlist that is too short get UNSETTLED.
        """
        params = [row.params for row in rows]
        random = [index for index, param in enumerate(params) if not param.is_greedy]
        narrowed = [index for index in random if is_narrowed(params[index])]
        self._keys = None
        if random:
            self._keys = noise.Keys([param.seed for param in params], [row.position for row in rows])
        self._temperatures = None
        if len(random) > len(narrowed):
            # A greedy row has temperature 0, which removes its noise. So the same operations serve all rows.
            temperatures = [0.0 if param.is_greedy else param.temperature for param in params]
            self._temperatures = upload(torch.tensor(temperatures, dtype=torch.float32)[:, None], device)
        self._narrowed = _NarrowedRows(params, narrowed, to_sort, device) if narrowed else None
        depths = logit_depths(params)
        self._depths = None if depths is None else upload(depths, device)
        self._biased = None
        if any(param.logit_bias is not None for param in params):
            self._biased = BiasedRows(params, lambda values: upload(values, device))
        states = [(index, row.penalties) for index, row in enumerate(rows) if isinstance(row.penalties, PenaltyState)]
        self._penalised = None
        if states:
            strengths = upload(penalty_strengths([params[index] for index, _ in states]), device)
            self._penalised = PenalisedRows([state for _, state in states], strengths)
            self._penalised_rows = upload(torch.tensor([index for index, _ in states]), device)

    def next_keys(self) -> NDArray[np.int32] | None:
        """Return the keys of the next call of `sample`, int32 of shape (num_rows, 2); None if all rows are greedy."""
        return None if self._keys is None else self._keys.take()

    def sample(self, logits: Tensor, keys: Tensor | None) -> Tensor:
        """Sample one token for each row, and count it for the row's penalties.

        Args:
            logits: float32 of shape (num_rows, vocab_size). Not changed.
            keys: The result of `next_keys`, copied to the device; None if that is None.

        Returns:
            Token ids or markers, int64 of shape (num_rows,).
        """
        largest, token_ids = logits.max(dim=-1)  # torch counts NaN as the largest value
        if self._biased is not None:
            logits = self._biased.apply(logits)
        if self._penalised is not None:
            penalised = self._penalised.apply(logits[self._penalised_rows])
            logits = logits.index_copy(0, self._penalised_rows, penalised)
        if self._biased is not None or self._penalised is not None:
            token_ids = logits.argmax(dim=-1)
        if keys is not None:
            if self._depths is not None:
                logits = without_unlikely(logits, self._depths)
            if self._temperatures is not None:
                uniforms = noise.uniform_of_all(keys, logits.shape[-1], logits.device)
                token_ids = (logits + self._temperatures * noise.gumbel(uniforms)).argmax(dim=-1)
            if self._narrowed is not None:
                token_ids = self._narrowed.sample(logits, keys, token_ids)
        token_ids.masked_fill_(~(largest.abs() < torch.inf), NOT_FINITE)
        if self._penalised is not None:
            self._penalised.add(token_ids[self._penalised_rows])
        return token_ids


class _NarrowedRows:
    """Sampler of the rows with top_k or top_p."""

    def __init__(
        self, params: Items[SamplingParams], rows: list[int], to_sort: Collection[int], device: torch.device
    ) -> None:
        def to_device(values: Tensor) -> Tensor:
            return upload(values, device)

        narrowed = [params[row] for row in rows]
        self._is_all = len(rows) == len(params)
        self._rows = to_device(torch.tensor(rows))
        self._temperatures = to_device(torch.tensor([param.temperature for param in narrowed])[:, None])
        self._limits = Limits.of(narrowed, to_device)
        long = [
            index
            for index, (row, param) in enumerate(zip(rows, narrowed, strict=True))
            if row in to_sort or (param.top_k or 0) > SHORTLIST
        ]
        self._long = to_device(torch.tensor(long)) if long else None
        self._long_limits = Limits.of([narrowed[index] for index in long], to_device) if long else self._limits

    def sample(self, logits: Tensor, keys: Tensor, token_ids: Tensor) -> Tensor:
        """Return `token_ids` with the sampled tokens of these rows; UNSETTLED where a row's shortlist is too short."""
        if not self._is_all:
            logits, keys = logits[self._rows], keys[self._rows]
        scaled = logits / self._temperatures
        drawn, is_settled = Shortlist.likeliest(scaled).pick(self._limits, keys)
        drawn = torch.where(is_settled, drawn, UNSETTLED)
        if self._long is not None:
            # A row whose shortlist suffices keeps the token drawn from it, as on the host: sums over the whole
            # vocabulary may be rounded differently.
            others, _ = Shortlist.whole(scaled[self._long]).pick(self._long_limits, keys[self._long])
            settled = drawn[self._long]
            drawn.index_copy_(0, self._long, torch.where(settled >= 0, settled, others))
        return drawn if self._is_all else token_ids.index_copy(0, self._rows, drawn)


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device: a copy on a GPU, for which the host does not wait, or the tensor itself on a CPU."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
