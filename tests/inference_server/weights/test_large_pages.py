"""Weights in large pages: alignment, content, and systems without them."""

import mmap
from pathlib import Path

import pytest
import torch

from inference_server.cpu import large_pages
from inference_server.cpu.large_pages import Arena, aligned_bytes, moved

LARGE = 32 << 20


def kilobytes_in_large_pages(address):
    """Return AnonHugePages of the mapping that contains an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        bounds, _, rest = line.partition(" ")
        if "-" in bounds and not bounds.endswith(":"):
            first, end = (int(each, 16) for each in bounds.split("-"))
            inside = first <= address < end
        elif inside and bounds == "AnonHugePages:":
            return int(rest.split()[0])
    return 0


def test_tensors_of_an_arena_are_aligned_and_do_not_overlap():
    sizes = [1, 63, 64, 65, 1000]
    arena = Arena(sum(aligned_bytes(size) for size in sizes))
    tensors = [arena.tensor(torch.uint8, (size,)).fill_(index) for index, size in enumerate(sizes)]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors)
    assert [set(tensor.tolist()) for tensor in tensors] == [{index} for index in range(len(sizes))]
    with pytest.raises(MemoryError):
        arena.tensor(torch.uint8, (1,))


def test_moved_tensors_keep_their_bits_and_shapes():
    tensors = {
        "view": torch.randn(6, 8).T,
        "bf16": torch.randn(3, 5).bfloat16(),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(7, dtype=torch.int32),
    }
    copies = moved(tensors)
    for name, tensor in tensors.items():
        assert copies[name].is_contiguous()
        assert torch.equal(copies[name], tensor)
        assert copies[name].dtype == tensor.dtype


@pytest.mark.skipif(
    "never" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().split("[")[-1].partition("]")[0]
    if Path("/sys/kernel/mm/transparent_hugepage/enabled").exists()
    else True,
    reason="this system has no transparent huge pages",
)
def test_an_arena_lies_in_large_pages():
    tensor = Arena(LARGE).tensor(torch.uint8, (LARGE,))
    assert tensor.data_ptr() % (2 << 20) == 0
    tensor.fill_(1)
    # The system may have too little contiguous memory for some of the pages.
    assert kilobytes_in_large_pages(tensor.data_ptr()) >= LARGE // 1024 // 2


class WithoutLargePages(mmap.mmap):
    def madvise(self, *_):
        raise OSError(22, "Invalid argument")


def test_a_system_that_refuses_large_pages_gives_usual_ones(monkeypatch):
    monkeypatch.setattr(large_pages.mmap, "mmap", WithoutLargePages)
    assert torch.equal(moved({"a": torch.arange(9)})["a"], torch.arange(9))


def test_a_system_without_the_request_gives_usual_pages(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert torch.equal(moved({"a": torch.arange(9)})["a"], torch.arange(9))
