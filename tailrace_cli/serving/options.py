"""Converts the options of `tailrace serve` to settings (TAILRACE_*), and checks models and ports before the start."""

from dataclasses import dataclass
from pathlib import Path

from tailrace_cli.environment import DEFAULT_GRPC_ADDRESS, DEFAULT_HTTP_ADDRESS, variable
from tailrace_cli.errors import Failure
from tailrace_shared.addresses import split_address
from tailrace_shared.config_errors import ConfigurationError
from tailrace_shared.listeners import PortInUse, listen

_HTTP, _GRPC = "TAILRACE_HTTP_ADDRESS", "TAILRACE_GRPC_ADDRESS"
_ANY_PORT = "localhost:0"
_SEPARATOR = ","


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Options of `tailrace serve`. The setting, or else its default, applies to an option that is None or empty.

    Attributes:
        models: Names of the models.
        host: Host at which the bridge listens.
        port: Port of the bridge; 0 selects a free one.
        catalog: Catalog file.
        device: "auto", "cpu" or "cuda".
        precision: Precision of the models that generate text.
        max_context: Longest prompt and reply together, in tokens.
        deterministic: True for byte-identical replies to equal requests.
        record: Folder in which every reply is recorded.
        replay: Folder from which recorded replies are sent. If `record` is the same folder, the server records missing
            replies.
    """

    models: tuple[str, ...] = ()
    host: str | None = None
    port: int | None = None
    catalog: str | None = None
    device: str | None = None
    precision: str | None = None
    max_context: int | None = None
    deterministic: bool = False
    record: str | None = None
    replay: str | None = None


def settings_of(options: ServeOptions) -> dict[str, str]:
    """Return the variables that the options set.

    Raises:
        Failure: A model's name is empty or has a comma, TAILRACE_HTTP_ADDRESS is not an address, or `record` and
            `replay` are different folders.
    """
    if name := next((name for name in options.models if _SEPARATOR in name), None):
        raise Failure(f"{name} contains a comma: put the model into a catalog, or use a link without one.")
    if not all(name.strip() for name in options.models):
        raise Failure("The name of a model is empty.")
    values = {
        "MODELS": _SEPARATOR.join(options.models),
        "CATALOG": options.catalog,
        "DEVICE": options.device,
        "PRECISION": options.precision,
        "MAX_CONTEXT": options.max_context,
        "DETERMINISTIC": "true" if options.deterministic else None,
        **_recordings(options),
    }
    settings = {f"TAILRACE_{name}": str(value) for name, value in values.items() if value}
    if options.host is not None or options.port is not None:
        settings |= _address_settings(options)
    return settings


def _recordings(options: ServeOptions) -> dict[str, str]:
    """Return the folder of recordings and its mode; empty if the options name none. Raises Failure for two folders."""
    if options.record and options.replay and Path(options.record).absolute() != Path(options.replay).absolute():
        raise Failure("--record and --replay name two folders: name the same one, to record what is missing in it.")
    folder = options.record or options.replay
    if not folder:
        return {}
    mode = "replay" if not options.record else "auto" if options.replay else "record"
    return {"RECORDINGS": folder, "RECORDINGS_MODE": mode}


def replays_only() -> bool:
    """Return True if the settings in the environment make the server replay recordings, without a model."""
    return bool(variable("TAILRACE_RECORDINGS")) and variable("TAILRACE_RECORDINGS_MODE", "replay") == "replay"


def _address_settings(options: ServeOptions) -> dict[str, str]:
    """Return the bridge's address, and for a second stack on this machine also a gRPC address with port 0.

    The stack counts as a second one if --port is given, no gRPC address is set, and the port is 0 or the default gRPC
    address is in use. Two stacks that start simultaneously with --port 0 therefore have no port in common.
    """
    address = variable(_HTTP, DEFAULT_HTTP_ADDRESS)
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise Failure(f"{_HTTP}={address}: {error}.") from None
    host, port = options.host or host, port if options.port is None else options.port
    host = f"[{host.strip('[]')}]" if ":" in host else host
    settings = {_HTTP: f"{host}:{port}"}
    if options.port is not None and not variable(_GRPC) and (port == 0 or not _is_free(DEFAULT_GRPC_ADDRESS)):
        settings[_GRPC] = _ANY_PORT
    return settings


def check_models() -> None:
    """Check the models of TAILRACE_MODELS, so that a wrong name ends the command before a service starts.

    Raises:
        Failure: A name or a setting is wrong.
    """
    from inference_server.serving.model_names import configured_entries
    from inference_server.settings.server import Settings

    try:
        configured_entries(Settings.from_environment())
    except ConfigurationError as error:
        raise Failure(f"{error}.") from None


def _is_free(address: str) -> bool:
    try:
        listeners = listen(address)
    except (PortInUse, OSError):
        return False
    for listener in listeners:
        listener.close()
    return True
