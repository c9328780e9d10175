"""A process with the hub's real client, which fetches models on command. It imports no torch, so it starts in half a second."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.support.hub.server import Hub
from tests.support.processes import ROOT

_FETCHES = """
import json, logging, pathlib, sys, traceback
from inference_server.weights.source import Weights
from inference_server.weights.store import fetch
from tailrace_shared.config_errors import ConfigurationError
from huggingface_hub import constants

ENDPOINT = constants.ENDPOINT
lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("inference_server").addHandler(handler)
logging.getLogger("inference_server").setLevel(logging.INFO)
for line in sys.stdin:
    command = json.loads(line)
    constants.HF_HUB_OFFLINE = command.pop("offline", False)
    constants.HF_HUB_CACHE = command.pop("hub_cache", constants.HF_HUB_CACHE)
    constants.ENDPOINT = command.pop("endpoint", ENDPOINT)
    refresh = command.pop("refresh", False)
    shown = [] if command.pop("shows", False) else None
    lines.clear()
    path = error = None
    try:
        show = None if shown is None else shown.append
        path = str(fetch(Weights(**command), pathlib.Path(sys.argv[1]), refresh=refresh, show=show))
    except ConfigurationError as raised:
        error = str(raised)
    except Exception:
        error = traceback.format_exc()
    print(json.dumps([path, error, lines, shown]), flush=True)
"""


class Outcome(NamedTuple):
    """The outcome of a fetch: a path, or the message of a ConfigurationError. A traceback is an error, too."""

    path: str | None
    error: str | None
    lines: list[str]
    shown: list[str] | None


class HubClient:
    """The process. Its cache folders stay when it ends."""

    def __init__(self, hub: Hub, home: Path, **environment: str) -> None:
        """Start the process.

        Args:
            hub: The hub.
            home: Folder of the two caches.
            environment: Further variables.
        """
        self.cache_dir = home / "tailrace"
        self.hub_cache = home / "hub"
        self.process = subprocess.Popen(
            [sys.executable, "-c", _FETCHES, str(self.cache_dir)],
            env=hub.environment(home, **environment),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self, name: str, **options: object) -> None:
        """Begin to fetch a model. Options are attributes of Weights, refresh, offline, shows, endpoint and hub_cache."""
        self.process.stdin.write(json.dumps({"hub": name, **options}) + "\n")
        self.process.stdin.flush()

    def outcome(self) -> Outcome:
        """Wait for the outcome of the fetch that `send` started."""
        return Outcome(*json.loads(self.process.stdout.readline()))

    def fetch(self, name: str, **options: object) -> Outcome:
        """Fetch a model and wait."""
        self.send(name, **options)
        return self.outcome()

    def kill(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.communicate()
