"""Our own clients and commands, towards a server that wants TLS and credentials."""

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

from tests import pictures
from tests.conftest import settings_with
from tests.secrecy import secret, secret_file
from tests.security.credentials import KeyFile, ca_file, channel_credentials, write_pem

CLICK = Prompt(points=[(9, 9)])
POLICY = """
version = 1
[quotas.default]
prompts = 2
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
    auth = {"keys_file": key_file.path, "policy_file": policy}
    async with running(settings_with(tls=pem.settings(), auth=auth)) as service:
        yield service


def target(service: Running) -> str:
    return service.address.replace("127.0.0.1", "localhost")


@pytest.fixture
def key_of(service: Running, key_file: KeyFile) -> Callable[..., str]:
    """Makes a key that the server knows."""

    def add(tenant: str, *roles: str) -> str:
        key = key_file.add(tenant, *roles)
        for watched in service.watched:
            watched.refresh()
        return key

    return add


@pytest.fixture
def connect(service: Running, authority: trustme.CA) -> Callable[..., Client]:
    """Makes a client with a token."""
    return lambda token: Client(
        target(service), credentials=channel_credentials(authority), token=token
    )


async def test_the_client_calls_with_a_key(
    connect: Callable[..., Client], key_of: Callable[..., str]
) -> None:
    async with connect(key_of("acme", "embed", "predict", "embeddings_admin")) as client:
        embedding = await client.embed(pictures.png())
        answer = await client.predict(embedding, [CLICK])
        assert await client.delete_embedding(embedding)
        assert await client.ready()
        with pytest.raises(PermissionDenied) as refused:
            await client.automask_all(pictures.png())
        with pytest.raises(QuotaExceeded) as over:
            await client.predict(pictures.png(), [CLICK] * 3)

    assert answer.results
    assert refused.value.metadata["permission"] == "automask"
    assert over.value.quota_subject == "tenant:acme"
    assert over.value.retry_after_s is None


async def test_a_token_may_be_asked_for_at_each_call(
    connect: Callable[..., Client], key_of: Callable[..., str]
) -> None:
    given = iter([key_of("acme", "embed"), secret("samserve_aaaaaaaaaaaa_" + "x" * 43)])
    async with connect(lambda: next(given)) as client:
        await client.models()
        with pytest.raises(Unauthenticated):
            await client.models()


async def test_a_rate_tells_when_to_come_back(
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
def test_a_token_does_not_go_over_a_network_in_the_clear(target: str) -> None:
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
def test_on_this_machine_it_may(host: str) -> None:
    Client(host, token="t")


async def test_no_proxy_gets_to_see_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.Event()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        writer.close()

    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        async with running(settings_with()) as service:
            target = service.address.replace("127.0.0.1", "localhost")
            async with Client(target, token="some-token") as client:
                await client.models()

    assert not asked.is_set()


async def test_a_token_that_cannot_be_sent_is_no_crash(service: Running) -> None:
    async with Client(service.address, token="a\nb") as client:
        with pytest.raises(ValueError, match="characters") as wrong:
            await client.models()

    assert "a\nb" not in str(wrong.value)


def test_a_command_does_not_send_it_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMSERVE_CLIENT_TOKEN", secret("a-token-of-some-length"))

    assert main(["models", "--server", "192.0.2.1:50051"]) == 2

    assert "without TLS: give --ca" in capsys.readouterr().err


async def test_the_blocking_client_has_a_token_too(
    service: Running, authority: trustme.CA, key_of: Callable[..., str]
) -> None:
    key = key_of("acme", "embed")

    def call() -> str:
        credentials = channel_credentials(authority)
        with SyncClient(target(service), credentials=credentials, token=key) as client:
            return client.embed(pictures.png()).model

    assert await asyncio.to_thread(call) == "fake"


@pytest.fixture
def commands(
    service: Running,
    tmp_path: Path,
    authority: trustme.CA,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Awaitable[tuple[int, str]]]:
    """Runs a command against the server; gives its code and standard error."""
    image = tmp_path / "picture.png"
    image.write_bytes(pictures.png())
    ca = ca_file(tmp_path, authority)

    async def run(*arguments: str, trusted: bool = True) -> tuple[int, str]:
        options = [str(image), "--server", target(service), *(["--ca", str(ca)] if trusted else [])]
        code = await asyncio.to_thread(main, ["embed", *options, *arguments])
        return code, capsys.readouterr().err

    return run


async def test_a_command_reads_its_key_from_a_file_or_the_environment(
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
    assert "credentials are needed" in err
    assert "UNAUTHENTICATED" in err
    monkeypatch.setenv("SAMSERVE_CLIENT_TOKEN", key)
    assert await commands() == (0, "")
    assert (await commands(trusted=False))[0] == 1
    monkeypatch.setenv("SAMSERVE_CLIENT_CA_FILE", str(tmp_path / "ca.crt"))
    assert await commands(trusted=False) == (0, "")


@pytest.mark.parametrize("content", ["", "\n", "two\nlines", "naïve", "\x00"])
async def test_a_file_without_a_key_is_one_line(
    commands: Callable[..., Awaitable[tuple[int, str]]], tmp_path: Path, content: str
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(content)

    code, err = await commands("--token-file", str(token_file))

    assert code == 2
    assert err == f"samserve: error: {token_file}: holds no API key or token\n"


def test_doctor_looks_at_the_files(
    tmp_path: Path, authority: trustme.CA, capsys: pytest.CaptureFixture[str]
) -> None:
    pem = write_pem(tmp_path, authority.issue_cert("localhost"))
    fake = ["--set", "engine.kind=fake", "--set", "server.port=0", "--set", "server.admin_port=0"]
    tls = ["--set", f"tls.cert_file={pem.cert}"]

    assert main(["doctor", *fake]) == 0
    assert "access: plaintext, credentials not needed" in capsys.readouterr().out
    assert main(["doctor", *fake, *tls, "--set", f"tls.key_file={pem.key}"]) == 0
    assert "access: TLS, credentials not needed" in capsys.readouterr().out
    assert main(["doctor", *fake, *tls, "--set", f"tls.key_file={pem.cert}"]) == 1
    assert "problem  access: TLS key: is no private key" in capsys.readouterr().out


def test_config_shows_paths_and_never_what_they_hold(
    tmp_path: Path, authority: trustme.CA, capsys: pytest.CaptureFixture[str]
) -> None:
    pem = write_pem(tmp_path, authority.issue_cert("localhost"))

    assert (
        main(["config", "--set", f"tls.cert_file={pem.cert}", "--set", f"tls.key_file={pem.key}"])
        == 0
    )

    assert f'key_file = "{pem.key}"' in capsys.readouterr().out


def test_serve_says_which_file_is_wrong_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "policy.toml"
    wrong.write_text("version = 1\n[quotas.a]\nembed = 'many'\n")
    free = ["--port", "0", "--admin-port", "0", "--set", "engine.kind=fake"]

    assert main(["serve", *free, "--set", f"auth.policy_file={wrong}"]) == 1

    err = capsys.readouterr().err
    assert err.startswith("samserve: error: policy file: quotas.a.embed: must be a whole number")
    assert len(err.splitlines()) == 1
