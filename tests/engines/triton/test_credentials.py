"""Credentials files are parsed, and their contents never appear in texts."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from pydantic import ValidationError
from samserve.engines.triton.credentials import Credentials, open_credentials
from samserve.errors import Misconfigured
from samserve.settings import TritonSettings

from tests.secret_leaks import secret
from tests.support.certificates import Issuer, Mounted

ISSUER = Issuer()
CERT, KEY = ISSUER.issue("gateway")
OTHER_KEY = ISSUER.issue("gateway")[1]
VALUE = secret("a-secret-header-value")
HEADERS = f"triton-grpc-protocol-admin: {VALUE}\n"
FILES = {"ca": ISSUER.pem, "cert": CERT, "key": KEY, "headers": HEADERS}


def mounted(folder: Path, **files: str) -> TritonSettings:
    mount = Mounted(folder / "mounted", **{**FILES, **files})
    paths = {f"{name}_file": mount.path(name) for name in FILES}
    return TritonSettings(tls=True, **paths)  # type: ignore[arg-type]


def read(settings: TritonSettings) -> Credentials:
    return open_credentials(settings).value


def encrypted(key: str) -> str:
    loaded = serialization.load_pem_private_key(key.encode(), None)
    return secret(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        ).decode()
    )


def test_credentials_files_are_read(tmp_path: Path) -> None:
    credentials = read(mounted(tmp_path))

    assert credentials.tls
    assert credentials.roots == ISSUER.pem.encode()
    assert (credentials.certificates, credentials.key) == (CERT.encode(), KEY.encode())
    assert credentials.headers == {"triton-grpc-protocol-admin": VALUE}


BROKEN: list[tuple[str, str, str]] = [
    ("ca", "", "No such file"),
    ("ca", KEY, "triton.ca_file"),
    ("ca", ISSUER.pem[: len(ISSUER.pem) // 2], "must contain PEM certificates"),
    ("cert", KEY, "must contain PEM certificates"),
    ("key", OTHER_KEY, "does not match"),
    ("key", CERT, "must be an unencrypted PEM private key"),
    ("key", KEY[: len(KEY) // 2], "must be an unencrypted PEM private key"),
    ("key", encrypted(KEY), "must be an unencrypted PEM private key"),
    ("key", KEY + " " * (1 << 20), "is larger than"),
    ("headers", VALUE, "line 1: not `name: value`"),
    ("headers", f"good: {VALUE}\n\nX-Bad: {VALUE}", "line 3: not `name: value`"),
    ("headers", f"grpc-timeout: {VALUE}", "line 1: not `name: value`"),
    ("headers", f"some-bin: {VALUE}", "line 1: not `name: value`"),
    ("headers", f": {VALUE}", "line 1: not `name: value`"),
    ("headers", f"\ufeffname: {VALUE}", "line 1: not `name: value`"),
    ("headers", "name:  ", "line 1: the value is empty or not printable ASCII"),
    ("headers", f"name: {VALUE}é", "line 1: the value is empty or not printable ASCII"),
    ("headers", f"name: {VALUE}\x00", "line 1: the value is empty or not printable ASCII"),
    ("headers", f"name: {VALUE}\nname: {VALUE}", "line 2: duplicate name"),
]


# Explicit ids, because the default ids would be the contents, which are secrets.
@pytest.mark.parametrize(
    ("name", "content", "expected"), BROKEN, ids=[f"{row[0]} {n}" for n, row in enumerate(BROKEN)]
)
def test_error_names_the_file_but_contains_nothing_of_it(
    tmp_path: Path, name: str, content: str, expected: str
) -> None:
    settings = mounted(tmp_path, **{name: content})
    with pytest.raises(Misconfigured) as caught:
        read(settings)

    text = str(caught.value)
    assert expected in text
    assert str(getattr(settings, f"{name}_file")) in text
    output = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "PRIVATE KEY" not in output
    assert not [part for part in secrets_of(content) if part in output]
    assert caught.value.__cause__ is None


def secrets_of(content: str) -> list[str]:
    """Return the secret parts of a file: a header's value, the lines of PEM text."""
    return [VALUE, *(line for line in content.splitlines() if len(line) > 30)]


def test_repr_contains_no_secrets(tmp_path: Path) -> None:
    files = open_credentials(mounted(tmp_path))
    text = f"{files.value} {files.value!r} {files!r}"

    assert not [part for part in secrets_of(KEY + HEADERS + CERT) if part in text]
    assert len(text) < 500


def test_without_a_ca_file_the_cas_of_the_system_are_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "system.crt"
    system.write_text(ISSUER.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(system))
    files = open_credentials(TritonSettings(tls=True))

    assert files.paths == (system,)
    assert files.value.roots == ISSUER.pem.encode()


def test_without_settings_no_file_is_read() -> None:
    files = open_credentials(TritonSettings())

    assert files.paths == ()
    assert not files.value.tls


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"tls": True, "cert_file": "a"}, "triton.key_file is missing"),
        ({"tls": True, "key_file": "a"}, "triton.cert_file is missing"),
        ({"ca_file": "a"}, "triton.ca_file requires triton.tls=true"),
        ({"cert_file": "a", "key_file": "b"}, "triton.cert_file requires triton.tls=true"),
    ],
)
def test_inconsistent_settings_are_rejected(settings: dict[str, Any], error: str) -> None:
    with pytest.raises(ValidationError, match=error):
        TritonSettings(**settings)


def test_headers_do_not_need_tls() -> None:
    assert TritonSettings(headers_file=Path("a")).headers_file == Path("a")
