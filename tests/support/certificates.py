"""Test certificates, and folders that are updated like volumes of Kubernetes."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import trustme

from tests.secret_leaks import secret


class Issuer:
    """A certificate authority."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    @property
    def pem(self) -> str:
        """The certificate of the authority."""
        return self._ca.cert_pem.bytes().decode()

    def issue(self, name: str) -> tuple[str, str]:
        """Issue a certificate for a host; return it and its private key."""
        issued = self._ca.issue_cert(name)
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        return chain.decode(), secret(issued.private_key_pem.bytes().decode())


class Mounted:
    """Files of a mounted secret: links into ``..data``, a link that is replaced atomically."""

    def __init__(self, folder: Path, **files: str) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._files: dict[str, str] = {}
        folder.mkdir()
        self.swap(**files)

    def path(self, name: str) -> Path:
        """Return the path of a file."""
        return self._folder / name

    def swap(self, **files: str) -> None:
        """Replace some files atomically; an empty one is missing afterwards."""
        self._files = {**self._files, **files}
        data, new = self._folder / "..data", self._folder / f"..{next(self._numbers)}"
        new.mkdir()
        for name, text in self._files.items():
            if text:
                (new / name).write_text(text)
            if not self.path(name).is_symlink():
                self.path(name).symlink_to(Path("..data") / name)
        old = data.resolve() if data.is_symlink() else None
        link = self._folder / "..data_tmp"
        link.symlink_to(new.name)
        link.rename(data)
        if old is not None:
            shutil.rmtree(old)
