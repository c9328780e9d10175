"""Prints for each platform which runtime packages have a wheel there: `python -m tests.supply_chain.platform_wheels [PYTHON]`.

Asks pip's index for every package that `tailrace[all]` needs, in the version of constraints.txt, without downloading it.
The packages come from the metadata of this environment, with the markers of each platform. Needs the network.
"""

import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
EXTRAS = ("server", "bridge", "traces")
_PARALLEL = 4
_SECONDS = 180


class Platform(NamedTuple):
    """A platform: the tags that its wheels may have, best first, and the values of its markers."""

    name: str
    tags: tuple[str, ...]
    markers: dict[str, str]


def _linux(machine: str) -> Platform:
    tags = tuple(f"manylinux_2_{minor}_{machine}" for minor in (34, 31, 28, 27, 26, 24, 17)) + (
        f"manylinux2014_{machine}",
    )
    markers = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": machine}
    return Platform(f"Linux {machine}", tags, markers)


def _mac(machine: str) -> Platform:
    tags = tuple(f"macosx_{major}_0_{kind}" for major in (14, 13, 12, 11) for kind in (machine, "universal2"))
    if machine == "x86_64":
        tags += tuple(f"macosx_10_{minor}_{kind}" for minor in (15, 13, 12, 9) for kind in (machine, "universal2"))
    markers = {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": machine}
    return Platform(f"macOS {machine}", tags, markers)


PLATFORMS = (
    _linux("x86_64"),
    _linux("aarch64"),
    _mac("arm64"),
    _mac("x86_64"),
    Platform(
        "Windows x86_64",
        ("win_amd64",),
        {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
    ),
)


def needed(markers: dict[str, str]) -> list[str]:
    """Return the names of the packages that `tailrace[all]` needs on a platform with these markers, in order."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    waiting = [
        Requirement(each) for each in (*project["dependencies"], *(x for name in EXTRAS for x in optional[name]))
    ]
    seen: dict[str, set[str]] = {}
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = {"", *requirement.extras}
        if requirement.marker and not requirement.marker.evaluate({**markers, "extra": ""}):
            continue
        if name in seen and extras <= seen[name]:
            continue
        seen[name] = seen.get(name, set()) | extras
        for text in _requires(name):
            each = Requirement(text)
            if each.marker is None or any(each.marker.evaluate({**markers, "extra": extra}) for extra in seen[name]):
                each.marker = None
                waiting.append(each)
    return sorted(seen)


def _requires(name: str) -> list[str]:
    try:
        return distribution(name).requires or []
    except PackageNotFoundError:  # needed on other platforms only: its own needs are unknown here
        return []


def pinned() -> dict[str, str]:
    """Return the versions of constraints.txt and requirements/torch.txt by package."""
    texts = [(ROOT / name).read_text() for name in ("constraints.txt", "requirements/torch.txt")]
    pins = re.findall(r"^([\w.-]+)==([^\s+;\\]+)", "\n".join(texts), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def has_wheel(requirement: str, tags: tuple[str, ...], python: str) -> bool:
    """Return True if pip finds a wheel for these tags. Nothing is installed."""
    options = ["--dry-run", "--no-deps", "--ignore-installed", "--only-binary", ":all:", "--python-version", python]
    options += [part for tag in tags for part in ("--platform", tag)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *options, "--target", "unused", requirement]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    return done.returncode == 0


def missing(platform: Platform, python: str) -> list[str]:
    """Return the packages without a wheel on the platform, as requirements."""
    versions = pinned()
    names = needed(platform.markers)
    listed = [f"{name}=={versions[name]}" if name in versions else name for name in names]
    with ThreadPoolExecutor(_PARALLEL) as threads:
        found = list(threads.map(lambda each: has_wheel(each, platform.tags, python), listed))
    return [each for each, is_there in zip(listed, found, strict=True) if not is_there]


def main(python: str) -> None:
    """Print a line for each platform."""
    for platform in PLATFORMS:
        lacking = missing(platform, python)
        number = len(needed(platform.markers))
        print(
            f"{platform.name:16} {number - len(lacking):3} of {number} packages; no wheel: {', '.join(lacking) or '-'}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "3.11")
