"""Commands can trust a server's own certificate instead of its CA and names."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from samserve.app import running
from samserve.cli.main import main
from samserve.client import Client

from tests.conftest import settings_with
from tests.secret_leaks import secret, secret_file
from tests.security.credentials import Pem, channel_credentials, write_pem

FILE, NAME = "SAMSERVE_CLIENT_SERVER_CERT_FILE", "SAMSERVE_CLIENT_SERVER_NAME"


def issued(name: str) -> Callable[[Path], Pem]:
    return lambda folder: write_pem(folder, trustme.CA().issue_cert(name))


def self_signed(folder: Path) -> Pem:
    """Like `openssl req -x509 -subj /CN=...`: with a common name and no alternative names."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sam.example")])
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    secret(text.decode())
    pem = Pem(folder / "server.crt", secret_file(folder / "server.key"))
    pem.cert.write_bytes(certificate.public_bytes(Encoding.PEM))
    pem.key.write_bytes(text)
    return pem


@pytest.mark.parametrize(
    "create",
    [
        pytest.param(issued("sam.example"), id="another name"),
        pytest.param(issued("*.sam.example"), id="a domain", marks=pytest.mark.slow),
        pytest.param(issued("192.0.2.1"), id="another address", marks=pytest.mark.slow),
        pytest.param(self_signed, id="self-signed"),
    ],
)
async def test_a_pinned_server_certificate_is_trusted_for_any_name(
    create: Callable[[Path], Pem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = create(tmp_path / "server")
    other = write_pem(tmp_path / "other", trustme.CA().issue_cert("sam.example"))
    async with running(settings_with(tls=pem.settings())) as service:
        monkeypatch.setenv(FILE, str(pem.cert))
        assert await asyncio.to_thread(main, ["models", "--server", service.address]) == 0
        # Another certificate is not trusted, and a requested name is checked.
        monkeypatch.setenv(FILE, str(other.cert))
        assert await asyncio.to_thread(main, ["models", "--server", service.address]) == 1
        monkeypatch.setenv(FILE, str(pem.cert))
        monkeypatch.setenv(NAME, "elsewhere.example")
        assert await asyncio.to_thread(main, ["models", "--server", service.address]) == 1


async def test_a_client_accepts_another_server_name(tmp_path: Path, authority: trustme.CA) -> None:
    pem = write_pem(tmp_path, authority.issue_cert("sam.example"))
    credentials = channel_credentials(authority)
    async with running(settings_with(tls=pem.settings())) as service:
        address, name = service.address, "sam.example"
        async with Client(address, credentials=credentials, server_name=name) as client:
            assert await client.ready()


def test_an_invalid_certificate_file_is_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "server.crt"
    file.write_text("nothing")
    monkeypatch.setenv(FILE, str(file))

    assert main(["models", "--server", "127.0.0.1:1"]) == 2
    assert f"{file}: contains no PEM certificate" in capsys.readouterr().err
    monkeypatch.setenv("SAMSERVE_CLIENT_CA_FILE", str(file))
    assert main(["models", "--server", "127.0.0.1:1"]) == 2
    assert "exclude each other" in capsys.readouterr().err
