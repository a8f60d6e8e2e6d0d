"""The Python clients and commands with a server that requires TLS and credentials."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trustme
from samserve.app import Running, running
from samserve.cli.main import main
from samserve.client import (
    Client,
    PermissionDenied,
    Prompt,
    QuotaExceeded,
    SyncClient,
    Unauthenticated,
)

from tests import sample_images
from tests.conftest import settings_with
from tests.secret_leaks import secret, secret_file
from tests.security.credentials import KeyFile, ca_file, channel_credentials, write_pem
from tests.support.tcp import serving

POINT = Prompt(points=[(9, 9)])
POLICY = """
version = 1
[quotas.default]
max_prompts = 2
[quotas.tiny]
requests_per_s = 0.1
[tenants.slow]
quota = "tiny"
"""


@pytest.fixture
async def service(
    tmp_path: Path, authority: trustme.CA, key_file: KeyFile
) -> AsyncIterator[Running]:
    """A server with TLS, keys and a policy."""
    pem = write_pem(tmp_path / "server", authority.issue_cert("localhost"))
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    auth = {"api_keys_file": key_file.path, "policy_file": policy}
    async with running(settings_with(tls=pem.settings(), auth=auth)) as service:
        yield service


def target(service: Running) -> str:
    return service.address.replace("127.0.0.1", "localhost")


@pytest.fixture
def key_of(service: Running, key_file: KeyFile) -> Callable[..., str]:
    """Create a key that the server accepts."""

    def add(tenant: str, *roles: str) -> str:
        key = key_file.add(tenant, *roles)
        for file in service.files:
            file.refresh()
        return key

    return add


@pytest.fixture
def connect(service: Running, authority: trustme.CA) -> Callable[..., Client]:
    """Create a client with a token."""
    return lambda token: Client(
        target(service), credentials=channel_credentials(authority), token=token
    )


async def test_the_client_authenticates_with_an_api_key(
    connect: Callable[..., Client], key_of: Callable[..., str]
) -> None:
    async with connect(key_of("acme", "embed", "predict", "embeddings_admin")) as client:
        embedding = await client.embed(sample_images.png())
        prediction = await client.predict(embedding, [POINT])
        assert await client.delete_embedding(embedding)
        assert await client.ready()
        with pytest.raises(PermissionDenied) as denied:
            await client.automask_all(sample_images.png())
        with pytest.raises(QuotaExceeded) as over:
            await client.predict(sample_images.png(), [POINT] * 3)

    assert prediction.results
    assert denied.value.metadata["permission"] == "automask"
    assert over.value.quota_subject == "tenant:acme"
    assert over.value.retry_after_s is None


async def test_a_token_may_be_a_function_called_for_each_call(
    connect: Callable[..., Client], key_of: Callable[..., str]
) -> None:
    given = iter([key_of("acme", "embed"), secret("samserve_aaaaaaaaaaaa_" + "x" * 43)])
    async with connect(lambda: next(given)) as client:
        await client.models()
        with pytest.raises(Unauthenticated):
            await client.models()


async def test_an_exceeded_rate_returns_the_retry_delay(
    connect: Callable[..., Client], key_of: Callable[..., str]
) -> None:
    async with connect(key_of("slow", "embed")) as client:
        await client.models()
        with pytest.raises(QuotaExceeded) as over:
            await client.models()

    assert 5 < (over.value.retry_after_s or 0) <= 10


@pytest.mark.parametrize(
    "target",
    [
        *("example.test:1", "192.0.2.1:1", "dns:///example.test:1", "x", "dns:example.test"),
        *("dns://192.0.2.1/localhost:5", "ipv4:192.0.2.1:5", "ipv6:[2001:db8::1]:5", "xds:///a"),
    ],
)
def test_a_token_is_not_sent_over_a_network_without_tls(target: str) -> None:
    with pytest.raises(ValueError, match="without TLS"):
        Client(target, token="t")
    with pytest.raises(ValueError, match="without TLS"):
        SyncClient(target, token=lambda: "t")

    Client(target, token="t", plaintext=True)
    Client(target)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/tmp/x", "unix-abstract:x", "localhost"),
        *("127.0.0.1", "dns:localhost:5", "dns:///localhost:5", "ipv4:127.0.0.1:5", "ipv6:[::1]:5"),
    ],
)
def test_a_token_may_be_sent_to_loopback_without_tls(host: str) -> None:
    Client(host, token="t")


async def test_a_token_is_not_sent_through_an_http_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    connected = asyncio.Event()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()

    async with serving(proxy) as port:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        async with running(settings_with()) as service:
            target = service.address.replace("127.0.0.1", "localhost")
            async with Client(target, token="some-token") as client:
                await client.models()

    assert not connected.is_set()


async def test_a_token_with_invalid_characters_raises_value_error(service: Running) -> None:
    async with Client(service.address, token="a\nb") as client:
        with pytest.raises(ValueError, match="characters") as wrong:
            await client.models()

    assert "a\nb" not in str(wrong.value)


def test_commands_do_not_send_a_token_without_tls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMSERVE_CLIENT_TOKEN", secret("a-token-of-some-length"))

    assert main(["models", "--server", "192.0.2.1:50051"]) == 2

    assert "without TLS: set --ca" in capsys.readouterr().err


async def test_the_blocking_client_authenticates_with_an_api_key(
    service: Running, authority: trustme.CA, key_of: Callable[..., str]
) -> None:
    key = key_of("acme", "embed")

    def call() -> str:
        credentials = channel_credentials(authority)
        with SyncClient(target(service), credentials=credentials, token=key) as client:
            return client.embed(sample_images.png()).model

    assert await asyncio.to_thread(call) == "fake"


@pytest.fixture
def commands(
    service: Running,
    tmp_path: Path,
    authority: trustme.CA,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Awaitable[tuple[int, str]]]:
    """Run a command against the server; returns its exit code and standard error."""
    image = tmp_path / "image.png"
    image.write_bytes(sample_images.png())
    ca = ca_file(tmp_path, authority)

    async def run(*arguments: str, trusted: bool = True) -> tuple[int, str]:
        options = [str(image), "--server", target(service), *(["--ca", str(ca)] if trusted else [])]
        code = await asyncio.to_thread(main, ["embed", *options, *arguments])
        return code, capsys.readouterr().err

    return run


async def test_commands_read_the_key_from_a_file_or_the_environment(
    commands: Callable[..., Awaitable[tuple[int, str]]],
    key_of: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = key_of("acme", "embed")
    token_file = secret_file(tmp_path / "token.txt")
    token_file.write_text(f"{key}\n")

    assert await commands("--token-file", str(token_file)) == (0, "")
    code, err = await commands()
    assert code == 1
    assert "credentials are required" in err
    assert "UNAUTHENTICATED" in err
    monkeypatch.setenv("SAMSERVE_CLIENT_TOKEN", key)
    assert await commands() == (0, "")
    assert (await commands(trusted=False))[0] == 1
    monkeypatch.setenv("SAMSERVE_CLIENT_CA_FILE", str(tmp_path / "ca.crt"))
    assert await commands(trusted=False) == (0, "")


@pytest.mark.parametrize("content", ["", "\n", "two\nlines", "naïve", "\x00"])
async def test_a_token_file_without_a_key_is_a_one_line_error(
    commands: Callable[..., Awaitable[tuple[int, str]]], tmp_path: Path, content: str
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(content)

    code, err = await commands("--token-file", str(token_file))

    assert code == 2
    assert err == f"samserve: error: {token_file}: contains no API key or token\n"


def test_doctor_checks_certificate_files(
    tmp_path: Path, authority: trustme.CA, capsys: pytest.CaptureFixture[str]
) -> None:
    pem = write_pem(tmp_path, authority.issue_cert("localhost"))
    fake = ["--set", "engine.kind=fake", "--set", "server.port=0", "--set", "server.admin_port=0"]
    tls = ["--set", f"tls.cert_file={pem.cert}"]

    assert main(["doctor", *fake]) == 0
    assert "authentication: plaintext, credentials not required" in capsys.readouterr().out
    assert main(["doctor", *fake, *tls, "--set", f"tls.key_file={pem.key}"]) == 0
    assert "authentication: TLS, credentials not required" in capsys.readouterr().out
    assert main(["doctor", *fake, *tls, "--set", f"tls.key_file={pem.cert}"]) == 1
    out = capsys.readouterr().out
    assert "problem  authentication: TLS key: must be an unencrypted PEM private key" in out


def test_config_shows_paths_and_not_file_contents(
    tmp_path: Path, authority: trustme.CA, capsys: pytest.CaptureFixture[str]
) -> None:
    pem = write_pem(tmp_path, authority.issue_cert("localhost"))

    assert (
        main(["config", "--set", f"tls.cert_file={pem.cert}", "--set", f"tls.key_file={pem.key}"])
        == 0
    )

    assert f'key_file = "{pem.key}"' in capsys.readouterr().out


def test_serve_names_the_invalid_file_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "policy.toml"
    wrong.write_text("version = 1\n[quotas.a]\nmax_concurrent_embed = 'many'\n")
    free = ["--port", "0", "--admin-port", "0", "--set", "engine.kind=fake"]

    assert main(["serve", *free, "--set", f"auth.policy_file={wrong}"]) == 1

    err = capsys.readouterr().err
    assert err.startswith(
        "samserve: error: policy file: quotas.a.max_concurrent_embed: must be a whole number"
    )
    assert len(err.splitlines()) == 1
