"""File permissions, and the limit on open files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme
from samserve.cache.shared.redis.credentials import open_cache_credentials
from samserve.engines.triton.credentials import open_credentials
from samserve.errors import Misconfigured
from samserve.rpc import file_limit
from samserve.rpc.file_limit import within_file_limit
from samserve.security.setup import open_security
from samserve.settings import Settings, load
from samserve.system import file_permissions
from structlog.testing import capture_logs

from tests.conftest import settings_with
from tests.secret_leaks import secret, secret_file
from tests.security.credentials import KeyFile, jwk, jwks, write_pem


def every_file(folder: Path, authority: trustme.CA) -> dict[str, Path]:
    """Write a valid file for each setting that names one."""
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
    headers.write_text(f"x-api-key: {secret('a-key-of-triton')}\n")
    return {
        "tls.cert_file": pem.cert,
        "tls.key_file": pem.key,
        "tls.client_ca_file": ca,
        "auth.api_keys_file": key_file.path,
        "auth.jwks_file": tokens,
        "auth.policy_file": policy,
        "cache.shared.password_file": password,
        "triton.headers_file": headers,
    }


def settings_of(files: dict[str, Path]) -> Settings:
    sections: dict[str, Any] = {
        "auth": {"jwt_issuer": "https://issuer.test", "jwt_audience": "us"},
        "cache": {"shared": {"nodes": "localhost:7000"}},
    }
    for name, path in files.items():
        *parts, field = name.split(".")
        section = sections
        for part in parts:
            section = section.setdefault(part, {})
        section[field] = path
    return load(sections)


def read_all(settings: Settings) -> None:
    open_security(settings)
    open_cache_credentials(settings.cache.shared)
    open_credentials(settings.triton)


def warned_paths(settings: Settings) -> list[str]:
    with capture_logs() as lines:
        read_all(settings)
    return [line["path"] for line in lines if line["event"] == "insecure file permissions"]


def test_every_world_writable_file_is_logged(tmp_path: Path, authority: trustme.CA) -> None:
    files = every_file(tmp_path / "files", authority)
    settings = settings_of(files)
    assert warned_paths(settings) == []

    missing = []
    for name, path in files.items():
        path.chmod(0o666)
        if str(path) not in warned_paths(settings):
            missing.append(name)
        path.chmod(0o600)

    assert missing == []


def test_a_world_writable_folder_without_sticky_bit_is_logged(
    tmp_path: Path, authority: trustme.CA
) -> None:
    files = every_file(tmp_path / "files", authority)
    settings = settings_of({"auth.policy_file": files["auth.policy_file"]})

    (tmp_path / "files").chmod(0o777)
    assert warned_paths(settings) == [str(tmp_path / "files")]
    # With the sticky bit, as /tmp has it, only the owner of a file can replace it.
    (tmp_path / "files").chmod(0o1777)
    assert warned_paths(settings) == []


def test_permissions_are_checked_through_symbolic_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "keys.toml").write_text("")
    (tmp_path / "real" / "keys.toml").chmod(0o622)
    link = tmp_path / "keys.toml"
    link.symlink_to(tmp_path / "real" / "keys.toml")

    with capture_logs() as lines:
        file_permissions.warn_if_world_writable([link])

    assert [line["path"] for line in lines] == [str(tmp_path / "real" / "keys.toml")]


def test_a_server_with_a_too_low_file_limit_does_not_start() -> None:
    flags = ("--set=engine.kind=fake", "--port=0", "--admin-port=0")
    serve = (sys.executable, "-m", "samserve", "serve", *flags)
    done = subprocess.run(
        # In a shell: a preexec_fn runs in a fork of this process, where gRPC's threads may abort.
        ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *serve],
        stderr=subprocess.PIPE,
        check=False,
        text=True,
    )

    assert done.returncode == 1
    assert "may open 64 files, and needs 320 for 64 connections" in done.stderr
    assert "ulimit -n" in done.stderr


@pytest.mark.parametrize(
    ("files", "configured", "connections"), [(1000, 4096, 744), (4352, 4096, None), (320, 64, None)]
)
def test_a_reduced_connection_limit_is_logged(
    monkeypatch: pytest.MonkeyPatch, files: int, configured: int, connections: int | None
) -> None:
    monkeypatch.setattr(file_limit, "raise_file_limit", lambda: files)
    with capture_logs() as lines:
        used = within_file_limit(settings_with(server={"max_connections": configured}))

    assert used.server.max_connections == (connections or configured)
    assert [line["connections"] for line in lines] == ([] if connections is None else [connections])


@pytest.mark.parametrize(
    ("files", "api", "http"),
    [(5376, 4096, 1024), (5375, 4095, 1023), (2500, 1773, 470), (384, 64, 64)],
)
def test_both_listeners_share_the_file_limit(
    monkeypatch: pytest.MonkeyPatch, files: int, api: int, http: int
) -> None:
    monkeypatch.setattr(file_limit, "raise_file_limit", lambda: files)
    with capture_logs() as lines:
        used = within_file_limit(settings_with(http={"enabled": True}))

    assert (used.server.max_connections, used.http.max_connections) == (api, http)
    assert api + http + 256 <= files
    reduced = [] if files == 5376 else ["server.max_connections", "http.max_connections"]
    assert [line["setting"] for line in lines] == reduced


def test_a_listener_that_is_off_needs_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_limit, "raise_file_limit", lambda: 383)
    assert within_file_limit(settings_with()).server.max_connections == 127
    with pytest.raises(Misconfigured, match="needs 384 for 128 connections"):
        within_file_limit(settings_with(http={"enabled": True}))


def test_the_minimum_file_limit_depends_on_max_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(file_limit, "raise_file_limit", lambda: 276)
    within_file_limit(settings_with(server={"max_connections": 20}))
    with pytest.raises(Misconfigured, match="needs 277"):
        within_file_limit(settings_with(server={"max_connections": 21}))
