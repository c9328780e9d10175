"""Serves folders as repositories of a hub, until it is interrupted.

python -m tests.support.hub owner/name=FOLDER ... [--rate BYTES_PER_SECOND]
"""

import argparse
from pathlib import Path

from tests.support.hub.server import Hub


def _main() -> None:
    parser = argparse.ArgumentParser(description="Serve folders as repositories of a hub.")
    parser.add_argument("repositories", nargs="+", metavar="owner/name=FOLDER")
    parser.add_argument("--rate", type=float, help="bytes per second of each large file")
    arguments = parser.parse_args()
    hub = Hub()
    for repository in arguments.repositories:
        name, _, folder = repository.partition("=")
        hub.add(name, Path(folder))
    hub.faults.bytes_per_second = arguments.rate
    print(f"HF_ENDPOINT={hub.url}", flush=True)
    hub.serve_forever()


if __name__ == "__main__":
    _main()
