"""Reports the modes for tests: deterministic replies, and recordings."""

import os
from collections.abc import Iterator
from typing import Any

from tailrace_cli.doctor.finding import Finding
from tailrace_shared.config_errors import ConfigurationError


def modes(server: Any) -> Iterator[Finding]:
    """Report deterministic mode, and check the folder of recordings. Reports nothing if neither is set.

    `server`: the inference server's settings.
    """
    if server.deterministic:
        yield Finding(True, "deterministic mode: equal requests get byte-identical replies, at a lower speed")
    if server.recordings is None:
        return
    path, mode = server.recordings, server.recordings_mode
    if mode != "replay" and not os.path.exists(path):
        yield Finding(True, f"recordings: mode {mode}; the server creates the folder {path}")
        return
    from inference_server.grpc_api.recordings.folder import RecordingsFolder

    try:
        folder = RecordingsFolder(path, mode)
    except ConfigurationError as error:
        yield Finding(False, f"the inference server does not start: {error}")
        return
    models = f" of {', '.join(folder.models)}" if folder.models else ""
    yield Finding(True, f"recordings: mode {mode}, {len(folder)} in {path}{models}")
