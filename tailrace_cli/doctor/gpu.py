"""Checks of the GPU: its properties, Triton, and how each model of the catalog runs on it.

Without a GPU, the report has a single line, which states this.
"""

import re
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from tailrace_cli.doctor.finding import Finding
from tailrace_shared.config_errors import ConfigurationError

if TYPE_CHECKING:
    from inference_server.engine.spec import EngineKey
    from inference_server.gpu.memory import EngineDemand
    from inference_server.serving.catalog import CatalogEntry
    from inference_server.settings.server import Settings

_GIB = 2**30
_DRIVER_FILE = Path("/proc/driver/nvidia/version")


def gpu() -> Iterator[Finding]:
    """Report the GPU that torch finds, the versions of CUDA and its driver, and whether Triton can run."""
    started = time.monotonic()
    try:
        import torch

        if not torch.cuda.is_available():
            yield Finding(None, "torch finds no GPU: models run on the CPU")
            return
        name = torch.cuda.get_device_name(0)
        major, minor = torch.cuda.get_device_capability(0)
        free, total = torch.cuda.mem_get_info(0)
    except (RuntimeError, OSError, ImportError) as error:
        yield Finding(False, f"torch cannot be used: {error}".splitlines()[0], "Install torch again.")
        return
    seconds = time.monotonic() - started
    yield Finding(
        True,
        f"{name}, compute capability {major}.{minor}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free "
        f"(found in {seconds:.1f} s)",
    )
    driver = _driver_version()
    yield Finding(
        None, f"torch is built for CUDA {torch.version.cuda}" + (f", the driver is {driver}" if driver else "")
    )
    yield _triton()


def models(entries: "Sequence[CatalogEntry]", settings: "Settings") -> Iterator[Finding]:
    """Report how each entry runs on the GPU, and whether all of them fit into its memory.

    Yields nothing if the server does not use a GPU.

    Args:
        entries: The catalog's entries.
        settings: The server's settings.
    """
    from inference_server.precision import choose_device

    try:
        device = choose_device(settings.device)
    # Other sections of the report contain these errors.
    except (ConfigurationError, RuntimeError, OSError, ImportError):
        return
    if device.type != "cuda":
        return
    from inference_server.serving.engine_groups import group_entries
    from inference_server.serving.gpu_plan import engine_demand

    demands: list[EngineDemand] = []
    is_complete = True
    for key, group in group_entries(entries, device).items():
        names = " + ".join(entry.name for entry in group)
        if key.engine != "tailrace":
            yield Finding(None, f"{names}: {key.engine} chooses how it runs, and its share of the memory")
            continue
        try:
            demand = engine_demand(key, group, settings, may_fetch=False)
        except ConfigurationError as error:
            yield Finding(False, f"{names}: {error}")
            is_complete = False
            continue
        if demand is None:
            yield Finding(
                None, f"{names}: as {key.precision}, not checked before its first start, which downloads or converts it"
            )
            is_complete = False
            continue
        demands.append(demand)
        yield _path(demand, settings)
        yield from _share(names, key, settings)
    if demands:
        yield _memory(demands, is_complete)


def _path(demand: "EngineDemand", settings: "Settings") -> Finding:
    from inference_server.gpu.paths import choose_path
    from inference_server.gpu.triton_support import has_triton

    path = choose_path(
        demand.can_fuse, demand.precision, int8_threshold=settings.int8_threshold, has_triton=has_triton()
    )
    return Finding(True, f"{demand.name}: as {demand.precision}, {path}")


def _share(names: str, key: "EngineKey", settings: "Settings") -> "Iterator[Finding]":
    """Report how many of a model's parameters are quantised, if the precision quantises any."""
    from inference_server.weights.sizes import predicted_share, read_config

    config = read_config(key.weights, settings.cache_dir, may_fetch=False)
    if config is not None and (share := predicted_share(config, key.precision, on_gpu=True)) is not None:
        yield Finding(None if share.warning else True, f"{names}: {share}", share.warning, bool(share.warning))


def _memory(demands: "Sequence[EngineDemand]", is_complete: bool) -> Finding:
    """Return the finding about memory: the models fit now, fit only without other programs, or do not fit."""
    import torch

    from inference_server.gpu.memory import CONTEXT_BYTES, plan

    free, total = torch.cuda.mem_get_info(0)
    subject = "the models fit" if is_complete else "the models checked above fit"
    try:
        granted = plan(free, demands)
    except ConfigurationError as error:
        try:
            plan(total - CONTEXT_BYTES, demands)
        except ConfigurationError as refusal:
            return Finding(False, f"the inference server does not start: {refusal}")
        return Finding(
            None,
            f"{subject} into the GPU's memory only if no other program uses it: {error}",
            "If the other program is a running inference server, ignore this.",
            is_warning=True,
        )
    weights = sum(demand.weight_bytes for demand in demands)
    caches = ", ".join(f"{tokens} for {demand.name}" for tokens, demand in zip(granted, demands, strict=True))
    return Finding(
        True, f"{subject} into the GPU's memory: {weights / _GIB:.1f} GiB of weights, tokens of KV cache: {caches}"
    )


def _triton() -> Finding:
    try:
        from inference_server.gpu.triton_support import obstacle
    except ImportError:
        return Finding(None, "the inference server is not installed here: Triton is not checked")
    reason = obstacle()
    if reason is not None:
        return Finding(
            None, f"{reason}: models on the GPU run by torch's operations, which are slower", is_warning=True
        )
    try:
        return Finding(True, f"Triton {version('triton')} can compile kernels")
    except PackageNotFoundError:
        return Finding(True, "Triton can compile kernels")


def _driver_version() -> str:
    """Return the version of NVIDIA's driver, or an empty string if the system does not report it."""
    try:
        found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", _DRIVER_FILE.read_text())
    except OSError:
        return ""
    return found[0] if found else ""
