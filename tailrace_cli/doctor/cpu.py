"""Checks of the CPU: the instruction set of the kernels, threads, large pages, and how each model of the catalog runs on it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tailrace_cli.doctor.finding import Finding
from tailrace_cli.doctor.installed import has_server
from tailrace_shared.config_errors import ConfigurationError

if TYPE_CHECKING:
    from inference_server.engine.spec import EngineKey
    from inference_server.serving.catalog import CatalogEntry
    from inference_server.settings.server import Settings

_LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_GIB = 2**30
_THREADS = "OMP_NUM_THREADS"


def kernels() -> Iterator[Finding]:
    """Report the instruction sets of this CPU, the one that kernels are compiled for, and why it is not a better one."""
    if not has_server():
        yield Finding(None, "the inference server is not installed here: the kernels for this CPU are not checked")
        return
    from inference_server.kernels.isa import choice, cpu

    offered = choice.available()
    try:
        chosen, obstacle = choice.chosen(), choice.obstacle()
    except ValueError as error:
        yield Finding(False, f"the kernels cannot be chosen: {error}", "Correct or unset the variable.")
        return
    if chosen is None:
        yield Finding(
            None,
            f"models on this CPU run by torch's operations: {obstacle}",
            "They are slower than compiled kernels, and multiply int8 and int4 weights in float32.",
            is_warning=True,
        )
        return
    others = ", ".join(isa.name for isa in offered if isa is not chosen)
    also = f" (this CPU also offers {others})" if others else ""
    yield Finding(True, f"models on this CPU use kernels for {chosen.name}{also}")
    if chosen is not offered[0]:
        advice = "Unset it for the fastest kernels."
        yield Finding(None, f"{choice.VARIABLE} excludes {offered[0].name}", advice, is_warning=True)
    if reason := cpu.refused_amx():
        yield Finding(None, f"this CPU has AMX, which the kernels do not use: {reason}", is_warning=True)


def environment() -> Iterator[Finding]:
    """Report the number of usable cores, a setting of more threads than cores, and a system without large pages."""
    if not has_server():
        return
    from inference_server.kernels.jit.cores import usable_cores

    cores, threads = usable_cores(), os.environ.get(_THREADS, "")
    if cores is not None:
        yield Finding(None, f"cores that this process may use: {cores}")
        if threads.isdecimal() and int(threads) > cores:
            yield Finding(
                None,
                f"{_THREADS}={threads} is more than these cores: threads that share a core wait for each other",
                f"Unset it: the server then computes on {cores} thread{'s' if cores > 1 else ''}.",
                is_warning=True,
            )
    if _LARGE_PAGES.is_file() and "[never]" in _LARGE_PAGES.read_text():
        yield Finding(
            None,
            f"this system has large pages switched off ({_LARGE_PAGES} is never): weights are read more slowly",
            f"As root: echo madvise > {_LARGE_PAGES}",
            is_warning=True,
        )


def models(entries: "Sequence[CatalogEntry]", settings: "Settings") -> Iterator[Finding]:
    """Report how each entry runs on the CPU: the precision, the instruction set, and which passes are kernel programs.

    Yields nothing if a GPU is used. Downloads nothing: for a model whose configuration is not on disk, it reports only
    the precision.

    Args:
        entries: The catalog's entries.
        settings: The server's settings.
    """
    for key, group in cpu_engines(entries, settings).items():
        names = " + ".join(entry.name for entry in group)
        if key.engine == "tailrace":
            yield _path(names, key, settings)
        else:
            yield Finding(None, f"{names}: {key.engine} chooses how it runs")


def memory(entries: "Sequence[CatalogEntry]", settings: "Settings") -> Iterator[Finding]:
    """Report whether the models whose configurations are on disk fit into the memory that is available now.

    Yields nothing if a GPU is used.

    Args:
        entries: The catalog's entries.
        settings: The server's settings.
    """
    from inference_server.machine import available_memory_bytes, memory_bytes
    from inference_server.serving.cpu_plan import check_memory, cpu_demands

    engines = cpu_engines(entries, settings)
    try:
        demands, free = cpu_demands(engines, settings, may_fetch=False), available_memory_bytes()
    except ConfigurationError:  # the finding about the model reports this error
        return
    if not demands:
        return
    weights = sum(demand.weight_bytes for demand in demands.values())
    try:
        check_memory(memory_bytes(), list(demands.values()))
    except ConfigurationError as error:
        yield Finding(False, f"the inference server does not start: {error}")
        return
    try:
        check_memory(free, list(demands.values()))
    except ConfigurationError as error:
        advice = "If a running inference server uses the memory, ignore this."
        yield Finding(None, f"the inference server does not start now: {error}", advice, is_warning=True)
        return
    subject = "the models fit" if len(demands) == len(engines) else "the models that are on disk fit"
    yield Finding(
        True, f"{subject} into the memory: {weights / _GIB:.1f} GiB of weights, {free / _GIB:.1f} GiB are available"
    )


def cpu_engines(entries: "Sequence[CatalogEntry]", settings: "Settings") -> "dict[EngineKey, list[CatalogEntry]]":
    """Return the entries of each engine; empty if the server uses a GPU, or cannot start."""
    from inference_server.precision import choose_device
    from inference_server.serving.engine_groups import group_entries

    try:
        device = choose_device(settings.device)
    # Other sections of the report contain these errors.
    except (ConfigurationError, RuntimeError, OSError, ImportError):
        return {}
    return {} if device.type != "cpu" else group_entries(entries, device)


def _path(names: str, key: "EngineKey", settings: "Settings") -> Finding:
    from inference_server.cpu.paths import predicted_path
    from inference_server.weights.sizes import predicted_share, read_config

    try:
        config = read_config(key.weights, settings.cache_dir, may_fetch=False)
    except ConfigurationError as error:
        return Finding(False, f"{names}: {error}")
    if config is None:
        text = f"{names}: as {key.precision}; its first start, which downloads or converts it, determines the path"
        return Finding(None, text)
    path = predicted_path(config, key.precision)
    try:
        share = predicted_share(config, key.precision, on_gpu=False)
    except ValueError as error:
        return Finding(False, f"{names}: {error}")
    text = f"{names}: as {key.precision}, {path}" + (f", {share}" if share else "")
    if share and share.warning:
        return Finding(None, text, share.warning, is_warning=True)
    return Finding(True if path.program == "all" else None, text)
