"""Text from outside: names that are not UTF-8, odd options, what would steer a terminal."""

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
"""What Python makes of the byte 0xff in a name."""


@pytest.fixture
def odd_image(image: Path, tmp_path: Path) -> Path:
    """A picture whose name is not UTF-8."""
    return image.rename(tmp_path / f"pic{BYTE}ture.png")


def test_a_record_has_the_name_of_every_file(
    samserve: Command, odd_image: Path, tmp_path: Path
) -> None:
    record = tmp_path / f"out{BYTE}.json"
    drawn = tmp_path / f"out{BYTE}.png"
    outputs = ("--json", record, "--out", drawn)

    ended = samserve("automask", odd_image, "--points-per-side", "4", *outputs, *FAKE)

    assert ended.code == 0, ended.err
    name = json.loads(record.read_bytes())["image"]["file_name"]
    assert os.fsencode(name) == b"pic\xffture.png"
    assert drawn.is_file()
    assert f"wrote {tmp_path}/out\\xff.json" in ended.err


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_json_on_standard_output_is_utf8_whatever_it_takes(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    name = "bücher\udcff.jpg"
    script = (
        "import os, sys; from samserve.cli import terminal; terminal.write_anything(); "
        "name = os.fsdecode(bytes.fromhex(sys.argv[1])); "
        "terminal.write_json('-', {'file': name}); terminal.say(name); terminal.note(name)"
    )

    ended = subprocess.run(
        [sys.executable, "-c", script, os.fsencode(name).hex()],
        capture_output=True,
        check=True,
    )

    record, text = ended.stdout.splitlines()
    assert json.loads(record.decode("utf-8")) == {"file": name}
    # Where nothing but ASCII is said to be taken, click writes UTF-8 all the same.
    u = b"\xfc" if encoding == "latin-1" else "ü".encode()
    assert text == ended.stderr.strip() == b"b" + u + b"cher\\xff.jpg"


def test_a_key_that_is_not_utf8_is_told(samserve: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))

    ended = samserve("keys", "hash", "--tenant", "a")

    assert ended.code == 2
    assert ended.error == "this is not a key that `samserve keys new` has made"


BAD = b"a = '\xff'\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("config", "--config", "FILE"), "FILE is not UTF-8: see its byte 6"),
        (("keys", "list", "--file", "FILE"), "FILE: key file: is not UTF-8"),
        (("keys", "new", "--tenant", "a", "--file", "FILE"), "FILE: key file: is not UTF-8"),
        (("serve", "--set", "auth.keys_file=FILE"), "key file: is not UTF-8"),
        (("serve", "--set", "auth.policy_file=FILE"), "policy file: is not UTF-8"),
        (("models", "--server", "127.0.0.1:1", "--token-file", "FILE"), "FILE: holds no API key"),
        (("models", "--server", "127.0.0.1:1", "--ca", "FILE"), "FILE: has no certificate"),
        (("automask", "IMAGE", "--point-grids", "FILE"), "--point-grids FILE: expected a JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[:2]),
)
def test_a_file_that_is_not_text_is_told_and_stays(
    samserve: Command, image: Path, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(BAD)
    free = ("--port", "0", "--admin-port", "0", *FAKE) if arguments[0] == "serve" else ()
    named = [part.replace("FILE", str(file)).replace("IMAGE", str(image)) for part in arguments]

    ended = samserve(*named, *free)

    assert ended.code in (1, 2)
    assert told.replace("FILE", str(file)) in ended.error
    assert file.read_bytes() == BAD


@pytest.mark.parametrize("arguments", [("config", "--config"), ("automask", "--point-grids")])
def test_a_file_that_is_nested_too_deeply_is_told(
    samserve: Command, image: Path, tmp_path: Path, arguments: tuple[str, str]
) -> None:
    command, option = arguments
    file = tmp_path / "file"
    file.write_text("a = " * (command == "config") + "[" * 100_000)

    ended = samserve(command, *([image] if command == "automask" else []), option, file)

    assert ended.code == 2
    assert str(file) in ended.error


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("TLS", "perhaps", "SAMSERVE_CLIENT_TLS: must be true or false"),
        ("TOKEN", "a\nb", "SAMSERVE_CLIENT_TOKEN: holds no API key or token"),
        ("TOKEN", BYTE, "SAMSERVE_CLIENT_TOKEN: holds no API key or token"),
    ],
    ids=["tls", "token-of-two-lines", "token-of-bytes"],
)
def test_a_variable_of_the_client_that_is_wrong_is_told(
    samserve: Command, monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(f"SAMSERVE_CLIENT_{name}", value)

    ended = samserve("models", "--server", "127.0.0.1:1")

    assert (ended.code, ended.error) == (2, told)


def test_a_model_whose_configuration_is_not_utf8_is_told(samserve: Command, tmp_path: Path) -> None:
    folder = shutil.copytree(default_repository() / "sam_tiny_decoder", tmp_path / "m_decoder")
    config = folder / "config.pbtxt"
    config.write_bytes(config.read_bytes() + b"# \xff")

    ended = samserve("models", "--set", f"engine.model_repository={tmp_path}")

    assert ended.code == 1
    assert ended.error.startswith(f"{config} is not a model configuration: ")


def test_what_would_steer_a_terminal_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say("\x1b[2Jclear\a\x9b1m\tand\nso on")
    terminal.note("\x1b]0;title\x07")

    written = capsys.readouterr()
    assert written.out == "\\x1b[2Jclear\\x07\\x9b1m\tand\nso on\n"
    assert written.err == "\\x1b]0;title\\x07\n"
