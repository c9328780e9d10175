"""`python -m benchmarks`: sets up the peers (Tailrace and its alternatives), measures them in turn, and writes JSON.

A full run without `--output` also updates docs/benchmarks.md and its charts.
"""

import argparse
import json
import signal
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Never

from benchmarks import machine
from benchmarks.default_model import default_model
from benchmarks.instruction_sets import InstructionSet, cpu_flags, named
from benchmarks.peers.all import all_peers
from benchmarks.peers.base import Peer
from benchmarks.processes import Child
from benchmarks.report import report, section
from benchmarks.rounds import Results, log_progress, prepare, run_rounds
from benchmarks.sizes import FULL, QUICK, Size

SCENARIOS = ["short", "long", "burst", "turns", "arrival", "neighbours", "pair"]
SCENARIOS += ["constraint", "share", "waiting", "instant"]


def main() -> int:
    arguments = _arguments()
    if arguments.report:
        report.write()
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit)
    size = _size(arguments)
    model = default_model()
    peers = [
        peer for peer in all_peers(model, arguments.features) if not arguments.peers or peer.name in arguments.peers
    ]
    results = Results()
    log_progress("preparing")
    ready = prepare(peers, results)
    if arguments.setup_only:
        return 0 if len(ready) == len(peers) else 1
    started = datetime.now(UTC)
    is_complete = False
    try:
        run_rounds(ready, arguments.scenarios, size, results, together=arguments.together)
        is_complete = True
    finally:
        Child.stop_all()
        name = f"{started:%Y-%m-%d}-{'quick' if arguments.quick else 'full'}.json"
        path = arguments.into or arguments.output or machine.results_folder(arguments.features) / name
        document = _document(peers, ready, size, results, started) | {"complete": is_complete}
        document["together"] = arguments.together
        document["limit"] = arguments.features.name if arguments.features else None
        if arguments.into is not None:
            document = _merged(json.loads(path.read_text()), document)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")
        log_progress(f"results: {path}")
    print(section.table(document))
    if not arguments.quick and not arguments.output:
        report.write()
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small round of everything, about five minutes")
    parser.add_argument("--rounds", type=int, help=f"rounds (default {FULL.rounds}; quick: {QUICK.rounds})")
    parser.add_argument("--peers", type=_names, default=[], help="only these, by name, separated by commas")
    parser.add_argument("--scenarios", type=_names, default=SCENARIOS, help=f"of {','.join(SCENARIOS)}")
    parser.add_argument("--streams", type=_numbers, help="streams with short prompts, such as 1,8,32,64")
    parser.add_argument("--long-streams", type=_numbers, help="streams with long prompts")
    parser.add_argument(
        "--output", type=Path, help="JSON file to write; docs/benchmarks.md and the chart then stay unchanged"
    )
    parser.add_argument("--setup-only", action="store_true", help="install the peers and stop")
    parser.add_argument(
        "--into",
        type=Path,
        metavar="JSON",
        help="results of an earlier run, in which these peers' results are replaced",
    )
    parser.add_argument(
        "--features", type=_limit, help="the best instruction set that the peers may use, such as avx2 (default: any)"
    )
    parser.add_argument("--together", action="store_true", help="measure peers with different weights alternately too")
    parser.add_argument(
        "--report",
        action="store_true",
        help="only write docs/benchmarks.md and its charts, from the newest results of every CPU class",
    )
    arguments = parser.parse_args()
    if wrong := set(arguments.scenarios) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(wrong))}")
    return arguments


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _limit(text: str) -> InstructionSet:
    try:
        return named(text, cpu_flags())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _size(arguments: argparse.Namespace) -> Size:
    size = QUICK if arguments.quick else FULL
    changes = {"rounds": arguments.rounds, "streams": arguments.streams, "long_streams": arguments.long_streams}
    return replace(size, **{name: value for name, value in changes.items() if value})


def _document(peers: list[Peer], ready: list[Peer], size: Size, results: Results, started: datetime) -> dict[str, Any]:
    return {
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "size": {name: getattr(size, name) for name in size.__dataclass_fields__},
        "imports": results.summarised("python")["cases"].get("imports", {}),
        "peers": {
            peer.name: {
                "title": peer.title,
                "weights": peer.weights,
                "measured": started.isoformat(timespec="seconds"),
                "versions": peer.versions() if peer in ready else {},
                **results.summarised(peer.name),
            }
            for peer in peers
        },
    }


def _merged(earlier: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """Return an earlier run's results, with those of this run's peers replaced.

    Machine and size are those of this run. Only rivals that were measured in the same run can be compared.
    """
    peers = {**earlier["peers"], **document["peers"]}
    imports = earlier["imports"] or document["imports"]
    return {**document, "started": earlier["started"], "imports": imports, "peers": peers}


def _exit(number: int, frame: FrameType | None) -> Never:
    """Exit through the `finally` blocks and atexit, which end every child process."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
