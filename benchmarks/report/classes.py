"""Finds the newest results of each CPU class: benchmarks/results/CLASS/DATE-full.json and DATE-kernels.json."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import RESULTS, instruction_family
from benchmarks.report.figures import Document

_FAMILY_TITLES = {"amx": "AMX", "avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassResults:
    """The results of a CPU class."""

    name: str  # the name of its folder
    path: Path
    document: Document  # the results of the whole benchmark
    kernels: Document | None  # the results of `python -m benchmarks.kernels`, if it ran

    @property
    def limit(self) -> str | None:
        """The instruction set that the run was limited to; None without a limit."""
        limit: str | None = self.document.get("limit")
        return limit

    @property
    def family(self) -> str:
        """The title of the best family of instruction sets, such as "AMX"."""
        return _FAMILY_TITLES.get(instruction_family(self.document["machine"]["instructions"]), "scalar")

    @property
    def title(self) -> str:
        """The CPU with its best family of instruction sets, or with the limit of the run, for a heading."""
        only = f"{self.limit} only" if self.limit else self.family
        return f"{self.document['machine']['cpu']}, {only}"


def all_classes(folder: Path = RESULTS) -> list[ClassResults]:
    """Return the newest results of every CPU class: CPUs with AMX first, classes limited to an instruction set last."""
    order = [*_FAMILY_TITLES.values(), "scalar"]
    found = list(_read(folder))
    return sorted(found, key=lambda each: (each.limit is not None, order.index(each.family), each.name))


def _read(folder: Path) -> Iterator[ClassResults]:
    for of_class in sorted(each for each in folder.iterdir() if each.is_dir()):
        if (path := _newest(of_class, "full")) is not None:
            kernels = _newest(of_class, "kernels")
            yield ClassResults(
                name=of_class.name,
                path=path,
                document=json.loads(path.read_text()),
                kernels=None if kernels is None else json.loads(kernels.read_text()),
            )


def _newest(folder: Path, kind: str) -> Path | None:
    """Return the newest file of a kind. File names begin with the date."""
    return max(folder.glob(f"*-{kind}.json"), default=None)
