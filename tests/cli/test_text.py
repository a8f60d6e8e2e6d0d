"""External text: file names and options that are not UTF-8, and control characters."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from samserve.app import default_repository
from samserve.cli import terminal

from tests.cli.conftest import FAKE, Command

BYTE = "\udcff"
"""How Python represents the byte 0xff in a file name."""


@pytest.fixture
def odd_image(image: Path, tmp_path: Path) -> Path:
    """An image whose file name is not UTF-8."""
    return image.rename(tmp_path / f"pic{BYTE}ture.png")


def test_a_record_keeps_a_file_name_that_is_not_utf8(
    samserve: Command, odd_image: Path, tmp_path: Path
) -> None:
    record = tmp_path / f"out{BYTE}.json"
    drawn = tmp_path / f"out{BYTE}.png"
    outputs = ("--json", record, "--out", drawn)

    result = samserve("automask", odd_image, "--points-per-side", "4", *outputs, *FAKE)

    assert result.code == 0, result.err
    name = json.loads(record.read_bytes())["image"]["file_name"]
    assert os.fsencode(name) == b"pic\xffture.png"
    assert drawn.is_file()
    assert f"wrote {tmp_path}/out\\xff.json" in result.err


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_json_on_standard_output_is_utf8_for_any_encoding(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    name = "bücher\udcff.jpg"
    script = (
        "import os, sys; from samserve.cli import terminal; terminal.escape_unencodable(); "
        "name = os.fsdecode(bytes.fromhex(sys.argv[1])); "
        "terminal.write_json('-', {'file': name}); "
        "terminal.write_line(name); terminal.write_note(name)"
    )

    result = subprocess.run(
        [sys.executable, "-c", script, os.fsencode(name).hex()],
        capture_output=True,
        check=True,
    )

    record, text = result.stdout.splitlines()
    assert json.loads(record.decode("utf-8")) == {"file": name}
    # With ASCII as the encoding, click writes UTF-8.
    u = b"\xfc" if encoding == "latin-1" else "ü".encode()
    assert text == result.stderr.strip() == b"b" + u + b"cher\\xff.jpg"


def test_a_key_that_is_not_utf8_is_reported(
    samserve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))

    result = samserve("keys", "hash", "--tenant", "a")

    assert result.code == 2
    assert result.error == "the key was not created by `samserve keys create`"


BAD = b"a = '\xff'\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("config", "--config", "FILE"), "FILE is not UTF-8: invalid byte at position 6"),
        (("keys", "list", "--file", "FILE"), "FILE: key file: is not UTF-8"),
        (("keys", "create", "--tenant", "a", "--file", "FILE"), "FILE: key file: is not UTF-8"),
        (("serve", "--set", "auth.api_keys_file=FILE"), "key file: is not UTF-8"),
        (("serve", "--set", "auth.policy_file=FILE"), "policy file: is not UTF-8"),
        (
            ("models", "--server", "127.0.0.1:1", "--token-file", "FILE"),
            "FILE: contains no API key",
        ),
        (
            ("models", "--server", "127.0.0.1:1", "--ca", "FILE"),
            "FILE: contains no PEM certificate",
        ),
        (("automask", "IMAGE", "--point-grids", "FILE"), "--point-grids FILE: expected a JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[:2]),
)
def test_a_file_that_is_not_utf8_is_reported_and_unchanged(
    samserve: Command, image: Path, tmp_path: Path, arguments: tuple[str, ...], text: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(BAD)
    free = ("--port", "0", "--admin-port", "0", *FAKE) if arguments[0] == "serve" else ()
    named = [part.replace("FILE", str(file)).replace("IMAGE", str(image)) for part in arguments]

    result = samserve(*named, *free)

    assert result.code in (1, 2)
    assert text.replace("FILE", str(file)) in result.error
    assert file.read_bytes() == BAD


@pytest.mark.parametrize("arguments", [("config", "--config"), ("automask", "--point-grids")])
def test_a_file_that_is_nested_too_deeply_is_reported(
    samserve: Command, image: Path, tmp_path: Path, arguments: tuple[str, str]
) -> None:
    command, option = arguments
    file = tmp_path / "file"
    file.write_text("a = " * (command == "config") + "[" * 100_000)

    result = samserve(command, *([image] if command == "automask" else []), option, file)

    assert result.code == 2
    assert str(file) in result.error


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("TLS", "perhaps", "SAMSERVE_CLIENT_TLS: must be true or false"),
        ("TOKEN", "a\nb", "SAMSERVE_CLIENT_TOKEN: contains no API key or token"),
        ("TOKEN", BYTE, "SAMSERVE_CLIENT_TOKEN: contains no API key or token"),
    ],
    ids=["tls", "token-of-two-lines", "token-of-bytes"],
)
def test_an_invalid_client_variable_is_reported(
    samserve: Command, monkeypatch: pytest.MonkeyPatch, name: str, value: str, text: str
) -> None:
    monkeypatch.setenv(f"SAMSERVE_CLIENT_{name}", value)

    result = samserve("models", "--server", "127.0.0.1:1")

    assert (result.code, result.error) == (2, text)


def test_a_model_configuration_that_is_not_utf8_is_reported(
    samserve: Command, tmp_path: Path
) -> None:
    folder = shutil.copytree(default_repository() / "sam_tiny_decoder", tmp_path / "m_decoder")
    config = folder / "config.pbtxt"
    config.write_bytes(config.read_bytes() + b"# \xff")

    result = samserve("models", "--set", f"engine.model_repository={tmp_path}")

    assert result.code == 1
    assert result.error.startswith(f"{config} is not a model configuration: ")


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.write_line("\x1b[2Jclear\a\x9b1m\tand\nso on")
    terminal.write_note("\x1b]0;title\x07")

    output = capsys.readouterr()
    assert output.out == "\\x1b[2Jclear\\x07\\x9b1m\tand\nso on\n"
    assert output.err == "\\x1b]0;title\\x07\n"
