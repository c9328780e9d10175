"""Part 1: records the machine's properties, and checks assumptions of the code in inference_server/gpu. Runs no model."""

import os
import platform
import shutil
import time
from functools import partial
from importlib import metadata
from statistics import median

import torch
import torch.nn.functional as F

from benchmarks.gpu import models, timing
from benchmarks.gpu.checks import Check, LeftOut, Mismatch, Note, Setup
from inference_server.engine.native import gumbel
from inference_server.engine.native.device_sampler import DeviceSampler
from inference_server.engine.native.sampler import Row, sample
from inference_server.generation import LogitBias, SamplingParams
from inference_server.gpu import triton_support

_PACKAGES = ("torch", "triton", "transformers", "bitsandbytes", "numpy")
_SAMPLINGS = (
    {"temperature": 0.7},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.8, "top_k": 40},
    {"temperature": 1.5, "min_p": 0.05},
    {"temperature": 1.0, "logit_bias": LogitBias.of({7: 5.0, 9: -100.0})},
    {"temperature": 0.0},
)


def _machine(setup: Setup, note: Note) -> None:
    """Record the versions of packages, and the properties of the machine and its GPU."""
    for name in _PACKAGES:
        try:
            note(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            note(name, None)
    note("python", platform.python_version())
    note("cpu", {"machine": platform.machine(), "cores": os.cpu_count()})
    note("c_compiler", next((name for name in ("gcc", "clang", "cc") if shutil.which(name)), None))
    note("triton_obstacle", triton_support.obstacle())
    note("shapes", setup.shapes)
    if not setup.is_cuda:
        note("device", "cpu")
        return
    properties = torch.cuda.get_device_properties(setup.device)
    free, total = torch.cuda.mem_get_info(setup.device)
    note("device", properties.name)
    note("capability", f"{properties.major}.{properties.minor}")
    note("multiprocessors", properties.multi_processor_count)
    note("l2_mb", round(timing.l2_bytes(setup) / 1e6, 1))
    note("memory_gib", {"total": round(total / 2**30, 2), "free": round(free / 2**30, 2)})
    note("cuda", torch.version.cuda)


def _bandwidth(setup: Setup, note: Note) -> None:
    """Record the bandwidth of a copy. The other parts compare their figures with such a bandwidth."""
    note("copy_gb_per_s", round(timing.copy_bandwidth(setup) / 1e9, 1))


def _noise(setup: Setup, note: Note) -> None:
    """Compare the random numbers and the tokens that are sampled on the device with those of the CPU."""
    cpu = torch.device("cpu")
    keys = [gumbel.key(seed, position) for seed in (0, 1, 2**63) for position in (0, 1, 4095)]
    size = models.SHAPES[setup.shapes]["vocab_size"]
    here = gumbel.uniform_of_all(keys, size, setup.device).cpu()
    there = gumbel.uniform_of_all(keys, size, cpu)
    differing = int((here != there).sum())
    note("differing_uniforms", f"{differing} of {here.numel()}")
    torch.manual_seed(0)
    logits = torch.randn(64, size) * 3
    rows = [Row(SamplingParams(seed=n, **_SAMPLINGS[n % len(_SAMPLINGS)]), n) for n in range(64)]
    expected = [chosen.token_id for chosen in sample(logits.clone(), rows)]
    sampled = {"sampler": [chosen.token_id for chosen in sample(logits.to(setup.device, copy=True), rows)]}
    sampled["device_sampler"] = _sample_on_device(setup, logits, rows)
    unequal = 0
    for name, tokens in sampled.items():
        # The device sampler returns negative numbers for rows that the host has to sample again. They are not compared.
        pairs = [pair for pair in zip(tokens, expected, strict=True) if pair[0] >= 0]
        wrong = sum(one != other for one, other in pairs)
        note(f"{name}: differing_tokens", f"{wrong} of {len(pairs)}")
        unequal += wrong
    if differing or unequal:
        raise Mismatch(f"{differing} random numbers and {unequal} sampled tokens differ from the CPU's")


def _sample_on_device(setup: Setup, logits: torch.Tensor, rows: list[Row]) -> list[int]:
    sampler = DeviceSampler(rows, setup.device)
    keys = sampler.next_keys()
    on_device = None if keys is None else torch.from_numpy(keys).to(setup.device)
    tokens: list[int] = sampler.sample(logits.to(setup.device, copy=True), on_device).tolist()
    return tokens


def _sdpa(setup: Setup, note: Note) -> None:
    """Record the time of torch's attention at new prompt lengths, with and without cuDNN's backend."""
    setup.need_cuda()
    was_enabled = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    note("cudnn_is_enabled_by_default", bool(was_enabled))
    try:
        for name, enabled, lengths in (("with", True, (117, 241, 399, 611)), ("without", False, (119, 243, 401, 613))):
            torch.backends.cuda.enable_cudnn_sdp(enabled)
            for call in ("first", "second"):
                times = [timing.host_seconds(setup, partial(_attention, setup, length)) for length in lengths]
                note(f"{call}_call_ms_{name}_cudnn", [round(each * 1e3, 2) for each in times])
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was_enabled)


def _attention(setup: Setup, length: int) -> None:
    query = torch.zeros((1, 32, length, 128), dtype=setup.dtype, device=setup.device)
    F.scaled_dot_product_attention(query, query, query, is_causal=True)


def _int8_capture(setup: Setup, note: Note) -> None:
    """Record a CUDA graph of bitsandbytes' int8 layers, and compare its replay with the eager pass."""
    setup.need_cuda()
    torch.manual_seed(0)
    weight = torch.randn(512, 512, dtype=setup.dtype, device=setup.device)
    layers = [models.int8_linear(weight), models.int8_linear(-weight)]
    x = torch.randn(8, 512, dtype=setup.dtype, device=setup.device)
    outputs: list[torch.Tensor] = []

    def forward() -> None:
        outputs[:] = [layers[1](layers[0](x))]

    with torch.inference_mode():
        forward()
        expected = outputs[0].clone()
        start = time.perf_counter()
        graph = timing.record_graph(setup, forward)
        note("record_ms", round((time.perf_counter() - start) * 1e3, 1))
        outputs[0].zero_()
        graph.replay()
        setup.wait()
    difference = float((outputs[0] - expected).abs().max())
    note("largest_difference", difference)
    if difference > 0:
        raise Mismatch(f"a replay differs from the recorded pass by {difference}")


def _graph_nodes(setup: Setup, note: Note) -> None:
    """Record the time of a kernel with almost no work: as a node of a CUDA graph, and launched by the host."""
    setup.need_cuda()
    x = torch.zeros(32, device=setup.device)

    def tiny_kernels(count: int) -> None:
        for _ in range(count):
            x.add_(1.0)

    for count in (100, 1000):
        graph = timing.record_graph(setup, partial(tiny_kernels, count))
        graph.replay()
        times = [timing.timed(setup, graph.replay) for _ in range(10)]
        note(f"us_per_node_of_{count}", round(median(times) / count * 1e6, 3))
        host = [timing.host_seconds(setup, graph.replay) for _ in range(10)]
        note(f"host_us_per_replay_of_{count}", round(median(host) * 1e6, 1))
    note("us_per_launch", round(timing.host_seconds(setup, lambda: tiny_kernels(1000)) / 1000 * 1e6, 2))


def _readback(setup: Setup, note: Note) -> None:
    """Record the time of reading 64 token ids on the host, and the time of copying 64 to the GPU."""
    setup.need_cuda()
    ids = torch.zeros(64, dtype=torch.int64, device=setup.device)
    pinned = torch.zeros(64, dtype=torch.int64).pin_memory()
    times = [timing.host_seconds(setup, ids.tolist) for _ in range(20)]
    note("us_per_readback", round(median(times) * 1e6, 1))
    copies = [timing.host_seconds(setup, lambda: ids.copy_(pinned, non_blocking=True)) for _ in range(20)]
    note("us_per_pinned_copy", round(median(copies) * 1e6, 1))


def _triton(setup: Setup, note: Note) -> None:
    """Record the time of the first Triton kernel, including compilation, and check its result."""
    setup.need_cuda()
    obstacle = triton_support.obstacle()
    if obstacle is not None:
        raise LeftOut(obstacle)
    from inference_server.gpu import ops, reference

    x = torch.randn(4, 512, dtype=setup.dtype, device=setup.device)
    start = time.perf_counter()
    result = ops.silu_mul(x)
    setup.wait()
    note("first_kernel_s", round(time.perf_counter() - start, 2))
    difference = float((result - reference.silu_mul(x)).abs().max())
    note("largest_difference", difference)
    if not difference < 1e-2:
        raise Mismatch(f"the kernel's result differs by {difference}")


CHECKS = [
    Check("machine", 10, _machine),
    Check("triton", 40, _triton),
    Check("noise", 15, _noise),
    Check("bandwidth", 10, _bandwidth),
    Check("graph nodes", 10, _graph_nodes),
    Check("int8 in a graph", 20, _int8_capture),
    Check("attention of torch", 20, _sdpa),
    Check("small copies", 10, _readback),
]
