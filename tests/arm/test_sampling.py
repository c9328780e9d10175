"""The sampling kernel on emulated Arm CPUs, against torch."""

import ctypes
import struct

import pytest
import torch
from torch import Tensor

from inference_server.engine.native import sampler
from inference_server.engine.native.sampler import sample
from inference_server.kernels.jit.arguments import BLOCK_BYTES
from inference_server.kernels.sampling import record
from tests.inference_server.engine.native.sampling.test_compiled_sampler import NUM_ROWS, logits_of, tokens, varied_rows


def memory(address: int, size: int) -> Tensor:
    """Return the bytes at an address of this process, without copying them."""
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=torch.uint8)


class EmulatedSampler:
    """Replaces the sampling kernel of this process: copies what it reads to the emulator and the results back."""

    def __init__(self, place, call) -> None:
        self._place, self._call = place, call

    def run(self, block: bytes, num_items: int, nanoseconds: int) -> None:
        """Sample the rows of an argument block. Arguments as for Kernel.run."""
        address, num_rows, vocab_size, hashes = struct.unpack_from("<4q", block, 24)
        originals = [(address, 8 * record.RECORD_WORDS * num_rows)]
        records = memory(*originals[0]).view(torch.int64).view(num_rows, record.RECORD_WORDS)
        copies = [self._place(records)]
        for row, copied in zip(records.tolist(), copies[0], strict=True):
            sizes = {record.LOGITS: 4, record.ALLOWED: 1}
            used = {word: size * vocab_size for word, size in sizes.items()} | {record.TOP: 8 * row[record.TOP_SIZE]}
            used |= dict.fromkeys((record.BIASED, record.BIASES), 4 * row[record.NUM_BIASED])
            penalties = record.PENALISED, record.COUNTS, record.UNCHANGED
            used |= dict.fromkeys(penalties, 4 * row[record.NUM_PENALISED])
            for word, size in used.items():
                if row[word]:
                    originals.append((row[word], size))
                    copies.append(self._place(memory(row[word], size)))
                    copied[word] = copies[-1].data_ptr()
        tables = self._place(memory(hashes, 8 * vocab_size))
        words = (0, 0, 0, copies[0].data_ptr(), num_rows, vocab_size, tables.data_ptr())
        self._call(struct.pack(f"7q{BLOCK_BYTES - 56}x", *words), "sample_rows")
        for original, copy in zip(originals, copies, strict=True):
            ctypes.memmove(original[0], copy.data_ptr(), original[1])
        undecided = (
            records[:, record.TOKEN] == record.UNDECIDED
        )  # torch would then sample, and its tokens prove nothing
        assert undecided.sum() <= 2


@pytest.mark.parametrize("vocab_size", [64, 1001])
def test_tokens_and_changed_logits_are_those_of_torch(vocab_size, place, call, monkeypatch):
    rows, logits = varied_rows(vocab_size), logits_of(NUM_ROWS, vocab_size)
    monkeypatch.setattr(sampler, "sampling_kernel", lambda logits: None)
    expected = logits.clone()
    wanted = tokens(sample(expected, rows))
    monkeypatch.setattr(sampler, "sampling_kernel", lambda logits: EmulatedSampler(place, call))
    assert tokens(sample(logits, rows)) == wanted
    assert torch.equal(logits, expected)


def test_log_probabilities_are_those_of_torch(place, call, monkeypatch):
    rows, logits = varied_rows(1001, logprobs=6), logits_of(NUM_ROWS, 1001)
    monkeypatch.setattr(sampler, "sampling_kernel", lambda logits: None)
    wanted = sample(logits.clone(), rows)
    monkeypatch.setattr(sampler, "sampling_kernel", lambda logits: EmulatedSampler(place, call))
    for found, expected in zip(sample(logits, rows), wanted, strict=True):
        assert found.logprob.token.logprob == pytest.approx(expected.logprob.token.logprob, abs=1e-4)
        assert [each.token_id for each in found.logprob.top] == [each.token_id for each in expected.logprob.top]
