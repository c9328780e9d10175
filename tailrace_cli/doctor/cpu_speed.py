"""Measures matrix products on this CPU, and reports settings that would make them faster. Takes about two seconds."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

from tailrace_cli.doctor.cpu import cpu_engines
from tailrace_cli.doctor.finding import Finding

if TYPE_CHECKING:
    from torch import Tensor, nn

    from inference_server.cpu.linear.integer_weights import Int4, Int8
    from inference_server.kernels.isa.instruction_set import InstructionSet
    from inference_server.serving.catalog import CatalogEntry
    from inference_server.settings.server import Settings

WIDTH = 4096  # inputs and outputs of the layer
# Bytes of all copies of the layer together, more than a CPU's caches hold: a model's forward pass also reads its
# weights from memory.
TOTAL_BYTES = 256 << 20
SECONDS = 0.12  # duration of one measurement
ROWS = (1, 32)  # rows of a product, one for each stream
_WORTHWHILE = 0.9  # another setting is reported if products take less than this share of the time

Precision = Literal["bfloat16", "bitsandbytes-int8", "int4"]
_FORMATS: dict[Precision, Literal["bf16", "int8", "int4"]] = {
    "bfloat16": "bf16",
    "bitsandbytes-int8": "int8",
    "int4": "int4",
}
_NAMES: dict[Precision, str] = {"bfloat16": "16-bit", "bitsandbytes-int8": "int8", "int4": "int4"}
_INTEGER: tuple[Precision, ...] = ("bitsandbytes-int8", "int4")

Times = dict[tuple[str, int], float]  # CPU seconds of a product, by precision and number of rows


def speed(entries: "Sequence[CatalogEntry]", settings: "Settings") -> Iterator[Finding]:
    """Measure the products of one layer in each precision on one thread, and compare them with those of other settings.

    Args:
        entries: The catalog's entries.
        settings: The server's settings.
    """
    engines = {key: group for key, group in cpu_engines(entries, settings).items() if key.engine == "tailrace"}
    if not engines:
        yield Finding(None, "not measured: no model of the catalog runs on the CPU by this server's own engine")
        return
    from inference_server.kernels.isa import choice

    chosen, offered = choice.chosen(), choice.available()
    yield Finding(None, f"measuring a layer of {WIDTH} x {WIDTH} weights on one thread, which takes about two seconds")
    try:
        times = measure(chosen)
    except RuntimeError as error:  # the log has the reason why a kernel cannot be compiled
        yield Finding(False, f"matrix products cannot be measured: {error}")
        return
    kernels = f"kernels for {chosen.name}" if chosen else "torch's operations"
    for rows in ROWS:
        yield Finding(None, f"{_streams(rows)}, {kernels}: {_comparison(times, rows)}")
    if offered and chosen is not offered[0]:
        yield _better_instruction_set(times, measure(offered[0]), offered[0].name)
    if chosen is not None:
        for key, group in engines.items():
            yield from _better_precision(" + ".join(entry.name for entry in group), key.precision, times)


def measure(isa: "InstructionSet | None") -> Times:
    """Return the times of a layer's products with the kernels of an instruction set, or with torch's operations.

    Each product reads a different copy of the layer, so that the weights come from memory. A time is that of the fastest
    product.
    """
    times: Times = {}
    with _one_thread():
        for precision in _NAMES:
            layers = _torch_layers(precision) if isa is None else _kernel_layers(precision, isa)
            for rows in ROWS:
                times[precision, rows] = _fastest(layers, rows)
    return times


def _kernel_layers(precision: Precision, isa: "InstructionSet") -> "list[nn.Module]":
    from inference_server.cpu.large_pages import moved
    from inference_server.cpu.linear.kernel_linear import LinearKind
    from inference_server.cpu.linear.panels import PanelBackend

    backend = PanelBackend(isa)
    packed = backend.pack(_weight(precision), None, LinearKind(_FORMATS[precision])).packed
    copies = moved({str(number): packed.weights for number in range(max(1, TOTAL_BYTES // packed.weights.nbytes))})
    return [backend.from_packed(replace(packed, weights=weights)) for weights in copies.values()]


def _torch_layers(precision: Precision) -> "list[nn.Module]":
    """Return layers that torch's operations compute. They multiply integer weights in float32."""
    import torch

    from inference_server.cpu.linear.kernel_linear import LinearKind
    from inference_server.cpu.linear.torch_backend import TorchBackend
    from inference_server.precision import activation_dtype

    dtype = activation_dtype("float16" if precision == "bfloat16" else precision, torch.device("cpu"))
    count = max(1, TOTAL_BYTES // (dtype.itemsize * WIDTH**2))
    return [
        TorchBackend().pack(torch.ones(WIDTH, WIDTH, dtype=dtype), None, LinearKind("float32")) for _ in range(count)
    ]


def _weight(precision: Precision) -> "Tensor | Int8 | Int4":
    """Return weights in the format of a precision. Their values do not change the time of a product."""
    import torch

    from inference_server.cpu.linear.integer_weights import Int4, Int8
    from inference_server.linears.plain import GROUP

    if precision == "bfloat16":
        return torch.ones(WIDTH, WIDTH, dtype=torch.bfloat16)
    if precision == "bitsandbytes-int8":
        return Int8(torch.ones(WIDTH, WIDTH, dtype=torch.int8), torch.ones(WIDTH))
    factors = torch.ones(WIDTH, WIDTH // GROUP)
    return Int4(torch.ones(WIDTH, WIDTH, dtype=torch.uint8), factors, factors)


def _fastest(layers: "list[nn.Module]", rows: int) -> float:
    """Return the CPU seconds of the fastest product of `rows` rows, after one product to load the kernel."""
    import torch

    dtype: Any = getattr(layers[0], "dtype", None) or layers[0].weight.dtype
    x = torch.ones(rows, WIDTH, dtype=dtype)
    found = []
    with torch.inference_mode():
        layers[-1](x)
        deadline = time.thread_time() + SECONDS
        for layer in cycle(layers):
            started = time.thread_time()
            layer(x)
            found.append(time.thread_time() - started)
            if time.thread_time() > deadline:
                return min(found)
    raise AssertionError("a cycle has no end")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Make torch and the kernels compute on this thread alone, so that its CPU time includes all of their work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _comparison(times: Times, rows: int) -> str:
    base = times["bfloat16", rows]
    others = ", ".join(f"{times[each, rows] / base:.2f} of it with {_NAMES[each]} weights" for each in _INTEGER)
    return f"a product takes {1000 * base:.2f} ms with 16-bit weights, {others}"


def _better_instruction_set(times: Times, best: Times, name: str) -> Finding:
    shares = sorted(best[key] / times[key] for key in times)
    text = f"with kernels for {name}, the same products take {shares[0]:.2f} to {shares[-1]:.2f} of the time"
    return Finding(None, text, "Unset TAILRACE_CPU_FEATURES.", is_warning=True)


def _better_precision(names: str, precision: str, times: Times) -> Iterator[Finding]:
    """Report the integer precision with the fastest products for one stream, if it clearly beats the model's own."""
    if (precision, 1) not in times:  # the model's precision was not measured, such as float32
        return
    best = min(_INTEGER, key=lambda other: times[other, 1])
    shares = [times[best, rows] / times[precision, rows] for rows in ROWS]
    if shares[0] < _WORTHWHILE:
        parts = ", ".join(f"{share:.2f} for {_streams(rows)}" for share, rows in zip(shares, ROWS, strict=True))
        text = f'{names}: with precision = "{best}" in the catalog, matrix products would take this share of the time: {parts}'
        yield Finding(None, text, "Its weights would be rounded, which changes replies.")


def _streams(rows: int) -> str:
    return "1 stream" if rows == 1 else f"{rows} streams"
