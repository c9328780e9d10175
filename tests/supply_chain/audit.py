"""Compares the locked packages with a stored list of advisories: python -m tests.supply_chain.audit FOLDER_OR_ZIP [LOCK ...]

Needs no network. The list has the OSV format: a clone of the PyPA's advisory database (a YAML file for each advisory), or
OSV's archive for PyPI (a zip file of JSON files). pip-audit, which asks a service on the internet, is the alternative.
"""

import json
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import yaml
from packaging.version import InvalidVersion, Version

from tests.supply_chain.lock import FOLDER, LOCKS, pins

Advisory = Mapping[str, Any]

HOW_TO_STORE = """\
There is no list of advisories at {path}. Store one, which needs the internet once, and set ADVISORIES to its path:
  git clone --depth 1 https://github.com/pypa/advisory-database build/advisories
or
  curl -Lo build/advisories.zip https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip"""


class NoList(Exception):
    """The path contains no advisories; the message contains the remedy."""


def normalized(name: str) -> str:
    """Return a package's name as PyPI compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_advisories(path: Path) -> Iterator[Advisory]:
    """Yield the advisories of a folder or of a zip file.

    Raises:
        NoList: The path does not exist, or contains no advisories.
    """
    found = False
    for text, is_json in _texts(path):
        found = True
        # The fast loader of libyaml, where it is installed.
        yield json.loads(text) if is_json else yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if not found:
        raise NoList(HOW_TO_STORE.format(path=path))


def _texts(path: Path) -> Iterator[tuple[str, bool]]:
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".json"):
                    yield archive.read(name).decode(), True
    elif path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix in (".yaml", ".json") and re.match(r"[A-Z]+-", file.name):
                yield file.read_text(encoding="utf-8"), file.suffix == ".json"


def findings(versions: Mapping[str, str], advisories: Iterator[Advisory]) -> Iterator[tuple[str, str, Advisory]]:
    """Yield name, version and advisory for each package that an advisory which was not withdrawn affects.

    Args:
        versions: Versions by normalised name.
        advisories: The list.
    """
    for advisory in advisories:
        if advisory.get("withdrawn"):
            continue
        for affected in advisory.get("affected", ()):
            package = affected.get("package", {})
            name = normalized(package.get("name", ""))
            if package.get("ecosystem") == "PyPI" and name in versions and is_affected(versions[name], affected):
                yield name, versions[name], advisory
                break


def is_affected(version: str, affected: Mapping[str, Any]) -> bool:
    """Return True if the version is listed, or lies in a range of versions, of one entry of OSV's `affected`."""
    current = Version(version)
    if any(_version(each) == current for each in affected.get("versions", ())):
        return True
    ranges = (each for each in affected.get("ranges", ()) if each.get("type") in ("ECOSYSTEM", "SEMVER"))
    return any(_is_inside(current, each.get("events", ())) for each in ranges)


def _is_inside(current: Version, events: Sequence[Mapping[str, str]]) -> bool:
    """Return True if the last event up to this version makes it affected. Events may be in any order."""
    inside = False
    for version, kind in sorted(
        (Version("0.dev0") if text == "0" else _version(text), kind) for kind, text in _pairs(events)
    ):
        if kind == "introduced" and version <= current:
            inside = True
        elif (kind == "fixed" and version <= current) or (kind == "last_affected" and version < current):
            inside = False
    return inside


def _pairs(events: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    for event in events:
        yield from event.items()


def _version(text: str) -> Version:
    """Return a version. Versions that PyPI no longer accepts become one that no package has."""
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0.dev0+invalid")


def _newest(advisories: Sequence[Advisory]) -> str:
    dates = [str(each.get("modified", ""))[:10] for each in advisories]
    return max(dates, default="")


def _as_text(value: Any) -> str:
    return value.isoformat() if isinstance(value, date | datetime) else str(value)


def main(arguments: Sequence[str]) -> int:
    """Print the findings. Returns 0 if there are none, 1 for findings, 2 without a list."""
    path, names = Path(arguments[0]), arguments[1:] or list(LOCKS)
    versions: dict[str, str] = {}
    for name in names:
        versions |= pins((FOLDER / f"{name}.txt").read_text())
    try:
        advisories = list(read_advisories(path))
    except NoList as reason:
        print(reason, file=sys.stderr)
        return 2
    found = list(findings(versions, iter(advisories)))
    for name, version, advisory in found:
        text = advisory.get("summary") or str(advisory.get("details", "")).strip().partition("\n")[0]
        print(f"{name} {version}: {advisory['id']} ({', '.join(advisory.get('aliases', ()))}) {text[:100]}")
    newest = _newest([{"modified": _as_text(each.get("modified", ""))} for each in advisories])
    print(f"{len(versions)} packages, {len(advisories)} advisories up to {newest}: {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
