"""Settings of the bridge, and of the commands that read them."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from samserve.bridge.credentials import parse_credential, parse_tokens
from samserve.bridge.settings import BridgeSettings
from samserve.errors import Misconfigured
from samserve.settings import load
from samserve.settings.loading import read

from tests.cli.conftest import Command, samserve, start

__all__ = ["samserve"]

DIGEST = hashlib.sha256(b"token").hexdigest()


@pytest.mark.parametrize(
    ("section", "values", "text"),
    [
        ("listener", {"host": "::"}, "listener.host :: is not loopback"),
        ("listener", {"port": 9000, "admin_port": 9000}, "they must differ"),
        ("listener", {"allowed_hosts": "a/b"}, "allowed_hosts"),
        ("listener", {"allowed_origins": "*"}, "allowed_origins"),
        ("gateways", {"targets": ""}, "at least one gateway"),
        ("gateways", {"targets": "127.0.0.1:1,127.0.0.1:1"}, "listed twice"),
        ("gateways", {"targets": "127.0.0.1"}, "HOST:PORT"),
        ("gateways", {"targets": "gateway:50051"}, "gateway:50051 is not on this machine"),
        ("gateways", {"cert_file": "a"}, "must be set together"),
        ("gateways", {"ca_file": "a"}, "require tls=true"),
    ],
)
def test_contradictions_are_rejected(section: str, values: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        read(BridgeSettings, {section: values})


def test_remote_gateways_need_tls_or_a_trusted_network() -> None:
    for more in ({"tls": True}, {"allow_plaintext": True}):
        read(BridgeSettings, {"gateways": {"targets": "gateway:50051", **more}})


def test_variables_of_bridge_and_server_may_be_in_one_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAMSERVE_BRIDGE_LISTENER__PORT", "9999")
    monkeypatch.setenv("SAMSERVE_SERVER__PORT", "50000")
    file = tmp_path / "bridge.toml"
    file.write_text("[gateways]\ntargets = '127.0.0.1:1'\n[listener]\nport = 1")

    settings = read(BridgeSettings, file=file)

    assert (settings.listener.port, settings.gateways.addresses) == (9999, ("127.0.0.1:1",))
    assert load().server.port == 50000


def test_command_prints_the_settings_of_the_bridge(
    samserve: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAMSERVE_BRIDGE_LISTENER__PORT", "9999")
    printed = samserve("config", "--bridge").out
    file = tmp_path / "bridge.toml"
    file.write_text(printed)
    monkeypatch.delenv("SAMSERVE_BRIDGE_LISTENER__PORT")
    monkeypatch.setenv("SAMSERVE_BRIDGE_CONFIG", str(file))

    values = json.loads(samserve("config", "--bridge", "--json").out)

    assert values["listener"]["port"] == 9999
    assert "# Maximum bytes of an image" in printed
    assert samserve("config", "--bridge").out == printed


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("listener.prot=1", "unknown setting listener.prot: did you mean listener.port?"),
        ("xyz.abc=1", "unknown setting xyz.abc: see `samserve config --bridge`"),
        ("listener=1", "--set 'listener=1': expected SECTION.NAME=VALUE"),
        ("limits.deadline_s=0", "setting limits.deadline_s: must be greater than 0; got '0'"),
    ],
)
def test_command_names_what_is_wrong(samserve: Command, argument: str, text: str) -> None:
    result = samserve("bridge", "--set", argument)

    assert (result.code, result.error) == (2, text)


def test_command_needs_the_file_that_the_environment_names(
    samserve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMSERVE_BRIDGE_CONFIG", "/no/such/file.toml")

    assert samserve("bridge").error == "SAMSERVE_BRIDGE_CONFIG: there is no file /no/such/file.toml"


def test_command_serves_until_sigterm(tmp_path: Path) -> None:
    process = start(
        *("bridge", "--port", "0", "--gateways", "127.0.0.1:1", "--set", "listener.admin_port=0"),
        *("--set", "log.format=json"),
    )
    assert process.stderr is not None
    with process:
        line = json.loads(process.stderr.readline())
        with urllib.request.urlopen(f"{line['address']}/x-anylabeling/health") as answer:
            assert answer.status == 200
        with urllib.request.urlopen(f"{line['admin']}/readyz") as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        rest = [json.loads(each)["event"] for each in process.stderr]

    assert (process.returncode, line["event"]) == (0, "serving")
    assert rest == ["request", "stopping", "stopped"]


@pytest.mark.parametrize("arguments", [["bridge"], ["config", "--bridge"]])
def test_commands_without_their_extra_name_it(arguments: list[str]) -> None:
    # In another process: modules that are imported once stay so.
    script = f"""
import sys
from samserve.cli.main import main
sys.modules["httpcore2"] = None
sys.exit(main({arguments}))
"""
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )

    assert process.returncode == 1
    assert "pip install '.[bridge]'" in process.stderr


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[tokens]]", "tokens.0.sha256: is missing"),
        (f'[[tokens]]\nname="a"\ncredential="b"\nsha256="{DIGEST[1:]}"', "must match"),
        (f'[[tokens]]\nname="a"\ncredential="b c"\nsha256="{DIGEST}"', "must be one API key"),
        (f'[[tokens]]\nname="a b"\ncredential="b"\nsha256="{DIGEST}"', "name: must match"),
        (2 * f'[[tokens]]\nname="a"\ncredential="b"\nsha256="{DIGEST}"\n', "listed twice"),
        ("[tokens", "is not valid TOML"),
    ],
)
def test_tokens_file_is_checked(text: str, problem: str) -> None:
    with pytest.raises(Misconfigured, match=problem):
        parse_tokens(text.encode())


def test_tokens_file_does_not_show_its_secrets() -> None:
    text = f'[[tokens]]\nname="a"\ncredential="hidden"\nsha256="{DIGEST}"'

    assert "hidden" not in repr(parse_tokens(text.encode()))


@pytest.mark.parametrize("text", ["", " \n", "a\nb", "kéy"])
def test_credential_file_has_one_credential(text: str) -> None:
    with pytest.raises(Misconfigured, match="contains no API key"):
        parse_credential(text.encode())
