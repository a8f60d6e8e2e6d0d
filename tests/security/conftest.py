from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from tests.security.credentials import KeyFile


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """The CA that clients trust."""
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.fixture(scope="session")
def untrusted_ca() -> trustme.CA:
    """A CA that neither clients nor servers trust."""
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.fixture
def key_file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.toml")
