"""Creates certificates for tests, signed by an authority of their own."""

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Files:
    """Files of a certificate and its key, in PEM."""

    cert: Path
    key: Path


class Authority:
    """Signs certificates and writes them into a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._authority = trustme.CA()
        self._folder = folder
        self.path = folder / f"{name}.pem"
        self._authority.cert_pem.write_to_path(self.path)

    def issue(self, name: str, *, host: str = "127.0.0.1", files: Files | None = None) -> Files:
        """Write a certificate with the common name `name` for `host`, to new files of that name or over `files`."""
        files = files or Files(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        issued = self._authority.issue_cert(host, common_name=name)
        issued.cert_chain_pems[0].write_to_path(files.cert)
        issued.private_key_pem.write_to_path(files.key)
        return files
