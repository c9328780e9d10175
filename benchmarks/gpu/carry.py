"""Collects the packages that the GPU check needs on a machine without a network, as small wheels for x86-64.

The machine already has torch, Triton, transformers and their dependencies. bitsandbytes contains a library for each
release of CUDA. Only the libraries for the CPU and for the machine's CUDA are included, so the wheel has 4 MB instead
of more than 100 MB.
"""

import argparse
import base64
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence as Items
from importlib import metadata
from pathlib import Path

MAX_BYTES = 64 * 2**20
# The versions are those of pyproject.toml. The GPU check imports no other package that such a machine lacks.
PACKAGES = ("bitsandbytes>=0.50,<0.51",)
_LIBRARY = "bitsandbytes/libbitsandbytes_"
_KEPT = ("cpu.so", "cuda{cuda}.so")
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux1")
# Files that installers write. A wheel does not contain them.
_INSTALLED_ONLY = {"INSTALLER", "REQUESTED", "RECORD", "direct_url.json"}


def main() -> int:
    """Write the wheels and print their sizes. Returns 1 if they are larger than 64 MiB, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.carry", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the wheels are written; wheels in it are deleted")
    parser.add_argument("--cuda", default="130", help="CUDA of the machine's torch, without the point (130 for 13.0)")
    parser.add_argument("--python", default="3.12", help="Python of the machine, for packages that depend on it")
    parser.add_argument("--add", action="append", default=[], metavar="PACKAGE", help="another package, as for pip")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for old in arguments.folder.glob("*.whl"):
        old.unlink()
    missing = [package for package in PACKAGES if not pack_installed(package, arguments.folder, arguments.cuda)]
    with tempfile.TemporaryDirectory() as name:
        for wheel in _download([*missing, *arguments.add], arguments.python, Path(name)):
            with zipfile.ZipFile(wheel) as archive:
                files = {each: archive.read(each) for each in archive.namelist() if not each.endswith("/RECORD")}
            write_wheel(arguments.folder / wheel.name, files, arguments.cuda)
    sizes = {wheel.name: wheel.stat().st_size for wheel in sorted(arguments.folder.glob("*.whl"))}
    for wheel_name, size in sizes.items():
        print(f"{size / 2**20:6.2f} MiB  {wheel_name}")
    total = sum(sizes.values())
    print(f"{total / 2**20:6.2f} MiB  in all, of at most {MAX_BYTES / 2**20:.0f}")
    return 1 if total > MAX_BYTES else 0


def pack_installed(package: str, folder: Path, cuda: str) -> bool:
    """Write the wheel of an installed package, if it has the requested release and is built for x86-64 and any Python.

    Args:
        package: Name and versions, as for pip: name>=version,<version.
        folder: Folder in which the wheel is written.
        cuda: The release of CUDA whose library is kept, without the point (130 for 13.0).

    Returns:
        True if the wheel was written.
    """
    name, _, least = package.partition(">=")
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    tag = next((line[5:] for line in (found.read_text("WHEEL") or "").splitlines() if line.startswith("Tag: ")), "")
    release = least.partition(",")[0]
    if not tag.startswith("py3-none-") or "x86_64" not in tag or not f"{found.version}.".startswith(f"{release}."):
        return False
    files = {
        str(path): Path(str(path.locate())).read_bytes()
        for path in found.files or ()
        if path.name not in _INSTALLED_ONLY and path.suffix != ".pyc" and not str(path).startswith("..")
    }
    write_wheel(folder / f"{name}-{found.version}-{tag}.whl", files, cuda)
    return True


def _download(packages: Items[str], python: str, folder: Path) -> list[Path]:
    """Download the wheels of `packages` for x86-64, without dependencies, and return the wheels in `folder`."""
    if packages:
        platforms = [f"--platform={platform}_x86_64" for platform in _PLATFORMS]
        options = ["--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms]
        command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", str(folder), *packages]
        subprocess.run(command, check=True)
    return sorted(folder.glob("*.whl"))


def write_wheel(path: Path, files: dict[str, bytes], cuda: str) -> None:
    """Write a wheel with a new RECORD, without bitsandbytes' libraries for other releases of CUDA.

    Raises:
        SystemExit: bitsandbytes has no library for this release.
    """
    kept = tuple(_LIBRARY + ending.format(cuda=cuda) for ending in _KEPT)
    libraries = [name for name in files if name.startswith(_LIBRARY)]
    if libraries and kept[-1] not in files:
        raise SystemExit(f"{path.name} has no library for CUDA {cuda}: {', '.join(sorted(libraries))}")
    files = {name: data for name, data in files.items() if name not in libraries or name in kept}
    folder = next(name.partition("/")[0] for name in files if name.endswith(".dist-info/METADATA"))
    record = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{folder}/RECORD"] = "\n".join([*record, f"{folder}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


if __name__ == "__main__":
    sys.exit(main())
