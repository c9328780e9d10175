"""Writes a software bill of materials (CycloneDX): python -m tests.supply_chain.sbom (environment PYTHON | image NAME)

cyclonedx-py, CycloneDX's own tool, reads the metadata of the installed Python packages. For an image, the Debian packages of
the base image are added. The BOM goes to standard output. Runs in an environment with requirements/tools.txt.
"""

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Iterator, Sequence
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

_PROJECT = Path(__file__).parents[2] / "pyproject.toml"
# Prints a tar archive with the metadata of the packages, which is all that the tool reads.
_METADATA = """
import io, sys, sysconfig, tarfile
from pathlib import Path
packages = Path(sysconfig.get_path("purelib"))
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
    for folder in packages.glob("*.dist-info"):
        archive.add(folder, folder.name)
    archive.add("/var/lib/dpkg/status", "dpkg-status")
"""


def environment_bom(python: Path) -> Bom:
    """Return the bill of the environment of a Python interpreter.

    Raises:
        CalledProcessError: The tool failed; its output is on stderr.
    """
    command = [str(Path(sys.executable).parent / "cyclonedx-py"), "environment", f"--pyproject={_PROJECT}"]
    command += ["--output-format=JSON", "--output-reproducible", str(python)]
    printed = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    bom: Bom = Bom.from_json(json.loads(printed))
    return bom


def image_bom(name: str) -> Bom:
    """Return the bill of a local image: its Python packages and its Debian packages.

    Raises:
        CalledProcessError: Docker or the tool failed; its output is on stderr.
    """
    command = ["docker", "run", "--rm", "--network=none", "--entrypoint=python", name, "-c", _METADATA]
    archive = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder)
        (packages,) = Path(folder).glob("lib/python*/site-packages")
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(packages, filter="data")
        bom = environment_bom(Path(folder) / "bin" / "python")
        bom.components.update(debian_components((packages / "dpkg-status").read_text(encoding="utf-8")))
    return bom


def debian_components(status: str) -> Iterator[Component]:
    """Yield the installed packages of dpkg's status file."""
    for paragraph in status.split("\n\n"):
        fields = Parser().parsestr(paragraph)
        if fields.get("Status", "").endswith(" installed"):
            name, number, architecture = (str(fields[key]) for key in ("Package", "Version", "Architecture"))
            purl = PackageURL("deb", "debian", name, number, {"arch": architecture})
            yield Component(name=name, version=number, type=ComponentType.LIBRARY, purl=purl, bom_ref=str(purl))


def as_text(bom: Bom) -> str:
    """Return the bill as JSON, in version 1.6 of the format."""
    outputter: Any = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6)
    return str(outputter.output_as_string(indent=2))


def main(arguments: Sequence[str]) -> int:
    """Print the bill of an environment or of an image. Returns 1 if a command failed."""
    kind, name = arguments
    try:
        bom = environment_bom(Path(name)) if kind == "environment" else image_bom(name)
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"The bill of materials of {kind} {name} was not written: {error}", file=sys.stderr)
        return 1
    print(as_text(bom))
    print(
        f"{kind} {name}: {len(bom.components)} components (cyclonedx-bom {version('cyclonedx-bom')})", file=sys.stderr
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
