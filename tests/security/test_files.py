"""What the system lets others do to our files, and lets us open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme
from samserve.engines.triton.credentials import open_credentials
from samserve.errors import Misconfigured
from samserve.rpc import server
from samserve.security.setup import open_security
from samserve.settings import ServerSettings, Settings, load
from samserve.stores.shared.redis.credentials import open_cache_credentials
from samserve.system import file_permissions
from structlog.testing import capture_logs

from tests.secrecy import secret, secret_file
from tests.security.credentials import KeyFile, jwk, jwks, write_pem


def every_file(folder: Path, authority: trustme.CA) -> dict[str, Path]:
    """A file of each kind that the server is told of."""
    pem = write_pem(folder, authority.issue_cert("localhost"))
    key_file, tokens = KeyFile(folder / "keys.toml"), folder / "jwks.json"
    key_file.add("acme", "embed")
    tokens.write_bytes(jwks(jwk()))
    ca = folder / "ca.crt"
    ca.write_bytes(authority.cert_pem.bytes())
    policy = folder / "policy.toml"
    policy.write_text("version = 1\n")
    password = secret_file(folder / "password")
    password.write_text(secret("a-password-of-the-cache"))
    headers = secret_file(folder / "headers")
    headers.write_text(f"x-api-key: {secret('a-key-of-the-model-server')}\n")
    return {
        "tls.cert_file": pem.cert,
        "tls.key_file": pem.key,
        "tls.client_ca_file": ca,
        "auth.keys_file": key_file.path,
        "auth.jwks_file": tokens,
        "auth.policy_file": policy,
        "cache.password_file": password,
        "triton.headers_file": headers,
    }


def settings_of(files: dict[str, Path]) -> Settings:
    sections: dict[str, dict[str, Any]] = {
        "auth": {"jwt_issuer": "https://issuer.test", "jwt_audience": "us"},
        "cache": {"nodes": "localhost:7000"},
    }
    for name, path in files.items():
        section, _, field = name.partition(".")
        sections.setdefault(section, {})[field] = path
    return load(sections)


def read_all(settings: Settings) -> None:
    open_security(settings)
    open_cache_credentials(settings.cache)
    open_credentials(settings.triton)


def warned(settings: Settings) -> list[str]:
    with capture_logs() as lines:
        read_all(settings)
    return [line["path"] for line in lines if line["event"] == "other users may change this"]


def test_each_file_that_others_may_write_is_told(tmp_path: Path, authority: trustme.CA) -> None:
    files = every_file(tmp_path / "files", authority)
    settings = settings_of(files)
    assert warned(settings) == []

    untold = []
    for name, path in files.items():
        path.chmod(0o666)
        if str(path) not in warned(settings):
            untold.append(name)
        path.chmod(0o600)

    assert untold == []


def test_a_folder_in_which_others_may_exchange_the_file_is_told(
    tmp_path: Path, authority: trustme.CA
) -> None:
    files = every_file(tmp_path / "files", authority)
    settings = settings_of({"auth.policy_file": files["auth.policy_file"]})

    (tmp_path / "files").chmod(0o777)
    assert warned(settings) == [str(tmp_path / "files")]
    # As /tmp has it: who does not own a file cannot exchange it.
    (tmp_path / "files").chmod(0o1777)
    assert warned(settings) == []


def test_a_file_is_looked_at_through_its_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "keys.toml").write_text("")
    (tmp_path / "real" / "keys.toml").chmod(0o622)
    link = tmp_path / "keys.toml"
    link.symlink_to(tmp_path / "real" / "keys.toml")

    with capture_logs() as lines:
        file_permissions.warn_if_world_writable([link])

    assert [line["path"] for line in lines] == [str(tmp_path / "real" / "keys.toml")]


def test_a_server_that_may_open_next_to_no_files_does_not_start() -> None:
    flags = ("--set=engine.kind=fake", "--port=0", "--admin-port=0")
    serve = (sys.executable, "-m", "samserve", "serve", *flags)
    done = subprocess.run(
        # By a shell: Python would do it in a fork of this process, where gRPC's threads may abort.
        ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *serve],
        stderr=subprocess.PIPE,
        check=False,
        text=True,
    )

    assert done.returncode == 1
    assert "may open 64 files, and needs 320 for 64 connections" in done.stderr
    assert "ulimit -n" in done.stderr


@pytest.mark.parametrize(
    ("files", "wanted", "connections"), [(1000, 4096, 744), (4352, 4096, None), (320, 64, None)]
)
def test_fewer_connections_than_wanted_are_told(
    monkeypatch: pytest.MonkeyPatch, files: int, wanted: int, connections: int | None
) -> None:
    monkeypatch.setattr(server, "file_limit", lambda: files)
    with capture_logs() as lines:
        server.check_files(ServerSettings(connections=wanted))

    assert [line["connections"] for line in lines] == ([] if connections is None else [connections])


def test_as_few_connections_as_the_settings_want_are_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "file_limit", lambda: 276)
    server.check_files(ServerSettings(connections=20))
    with pytest.raises(Misconfigured, match="needs 277"):
        server.check_files(ServerSettings(connections=21))
