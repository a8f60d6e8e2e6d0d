from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from tests.security.credentials import KeyFile, Pem, write_pem


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """The CA that clients trust."""
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.fixture
def server_pem(tmp_path: Path, authority: trustme.CA) -> Pem:
    return write_pem(tmp_path / "server", authority.issue_cert("localhost"))


@pytest.fixture
def key_file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.toml")
