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
def stranger() -> trustme.CA:
    """A CA that nobody trusts."""
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.fixture
def key_file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.toml")
