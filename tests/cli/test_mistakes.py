"""A mistake is one line on standard error and an exit code, and never a traceback."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import FAKE, Command

USAGE, FAILURE = 2, 1
ARRAYS = {
    "CUBE.npy": np.zeros((2, 2, 2)),
    "WIDE.npy": np.zeros((4, 6)),
    "TABLE.npy": np.zeros((4, 4), [("a", "i4"), ("b", "f4")]),
}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("predict", "IMAGE"), "say what to segment: --point, --box or --mask"),
        (("predict", "missing.png", "--point", "1,1"), "'missing.png' does not exist"),
        (("predict", "IMAGE", "--point", "1"), "--point '1': expected X,Y"),
        (("predict", "IMAGE", "--point", "1,a"), "--point '1,a': expected X,Y"),
        (("predict", "IMAGE", "--point", "1,1,7"), "--point '1,1,7': the label must be 1"),
        (("predict", "IMAGE", "--box", "1,2,3"), "--box '1,2,3': expected X0,Y0,X1,Y1"),
        (
            ("predict", "IMAGE", "--box", "1,1,2,2", "--box", "1,1,3,3", "--point", "1,1"),
            "several --box are several objects",
        ),
        (("predict", "IMAGE", "--mask", "TEXT"), "is not a JPEG, PNG or WebP file"),
        (("predict", "IMAGE", "--mask", "BROKEN.npy"), "is not a numpy array"),
        (("predict", "IMAGE", "--mask", "CUBE.npy"), "must have two axes, has 3"),
        (("predict", "IMAGE", "--mask", "WIDE.npy"), "[4, 6]; save the mask of an image as bool"),
        (("predict", "IMAGE", "--mask", "TABLE.npy"), "must hold bool, integers or floats"),
        (
            ("predict", "IMAGE", "--point", "1,1", "--multimask", "many"),
            "'--multimask': 'many' is not one of",
        ),
        (("predict", "IMAGE", "--point", "1,1", "--out", "a.gif"), "--out a.gif: the name must"),
        (("predict", "IMAGE", "--point", "1,1", "--out", "no/a.png"), "there is no folder no"),
        (("predict", "IMAGE", "--point", "1,1", "--json", "no/a.json"), "there is no folder no"),
        (("predict", "IMAGE", "--point", "1,1", "--server", "host"), "expected HOST:PORT"),
        (
            ("models", "--server", "localhost:1", "--set", "store.ttl_s=1"),
            "--config and --set are for the server that this command starts",
        ),
        (("automask", "IMAGE", "--points-per-side", "many"), "'many' is not a whole number"),
        (("automask", "IMAGE", "--points-per-side", "99999999999"), "does not fit"),
        (("serve", "--port", "many"), "'--port': must be a whole number; got 'many'"),
        (("automask", "IMAGE", "--pred-iou-thresh", "x"), "must be a number; got 'x'"),
        (
            ("cache", "warm", ".", "--server", "a:1", "--concurrency", "0"),
            "'--concurrency': must be at least 1; got '0'",
        ),
        (("cache", "rm", "a.jpg", "--server", "a:1"), "'a.jpg': is no id of an embedding"),
        (("serve", "--config", "TABLE"), "section server: must be a table of names"),
        (("automask", "IMAGE", "--roi", "1,2"), "--roi '1,2': expected X0,Y0,X1,Y1"),
        (("automask", "IMAGE", "--point-grids", "TEXT"), "expected a JSON list"),
        (("models", "--set", "store.ttl_s"), "--set 'store.ttl_s': expected SECTION.NAME=VALUE"),
        (("models", "--set", "store.ttl=1"), "there is no setting store.ttl"),
        (
            ("models", "--set", "store.ttl_s=never"),
            "store.ttl_s: must be a number; got 'never'",
        ),
        (("models", "--set", "store.tll_s=1"), "no setting store.tll_s: did you mean store.ttl_s?"),
        (("models", "--set", "triton.url=http://a:1"), "triton.url: is a URL: write a:1 instead"),
        (("models", "--set", "trace.endpoint=a:1"), "trace.endpoint: expected http://HOST:PORT"),
        (("config", "--set", "server.host=0.0.0.0:5"), "expected a host alone, without a port"),
        (("models", "--server", "http://a:1"), "--server: is a URL: write a:1 instead"),
        (("models", "--server", "::1:50051"), "stands in brackets: [::1]:50051"),
        (("models", "--config", "missing.toml"), "'missing.toml' does not exist"),
        (("models", "--config", "TEXT"), "is not valid TOML"),
        (("nonsense",), "No such command 'nonsense'"),
        (("models", "--nonsense"), "No such option: --nonsense"),
    ],
)
def test_wrong_usage_is_one_line_and_two(
    samserve: Command, image: Path, tmp_path: Path, arguments: tuple[str, ...], text: str
) -> None:
    files = {name: tmp_path / name for name in ("TEXT", "TABLE", *ARRAYS, "BROKEN.npy")}
    files["TABLE"].write_text("server = 3\n")
    files["TEXT"].write_text("no picture, no TOML, no JSON\n")
    files["BROKEN.npy"].write_bytes(b"\x93NUMPY")
    for name, array in ARRAYS.items():
        np.save(files[name], array)
    given = [{"IMAGE": image, **files}.get(part, part) for part in arguments]

    ended = samserve(*given)

    assert ended.code == USAGE
    assert ended.err.startswith("samserve: error: ")
    assert ended.err.count("\n") == 1
    assert text in ended.err
    assert ended.out == ""


def test_the_environment_may_name_the_file(
    samserve: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[limits]\nprompts = 7\n")
    monkeypatch.setenv("SAMSERVE_CONFIG", str(file))
    assert "prompts = 7\n" in samserve("config").out
    other = tmp_path / "other.toml"
    other.write_text("[limits]\nprompts = 8\n")
    assert "prompts = 8\n" in samserve("config", "--config", other).out

    file.write_text("prompts =")
    assert f"{file} is not valid TOML" in samserve("config").err
    file.unlink()
    ended = samserve("config")
    assert (ended.code, ended.out) == (USAGE, "")
    assert f"SAMSERVE_CONFIG: there is no file {file}" in ended.err


def test_every_wrong_setting_has_its_line(samserve: Command) -> None:
    ended = samserve("models", "--set", "store.ttl_s=-1", "--set", "engine.kind=magic")

    assert ended.code == USAGE
    assert [line.split()[3] for line in ended.err.splitlines()] == ["engine.kind:", "store.ttl_s:"]


@pytest.mark.parametrize(
    ("arguments", "text", "reason"),
    [
        (("--point", "65,1"), "prompts[0].points[0].x: must be from 0 to 64", "INVALID_ARGUMENT"),
        (("--point", "nan,1"), "prompts[0].points[0].x: must be finite", "INVALID_ARGUMENT"),
        (("--box", "9,9,1,20"), "prompts[0].box.x_max: must be greater", "INVALID_ARGUMENT"),
        (("--point", "1,1", "--model", "nope"), "no model 'nope'", "MODEL_NOT_FOUND"),
    ],
)
def test_the_servers_answer_is_one_line_with_reason_and_request_id(
    samserve: Command, image: Path, arguments: tuple[str, ...], text: str, reason: str
) -> None:
    ended = samserve("predict", image, *arguments, *FAKE)

    assert ended.code == FAILURE
    assert ended.err.startswith(f"samserve: error: {text}")
    assert f"({reason}, request " in ended.err
    assert ended.err.count("\n") == 1


def test_what_is_not_a_picture_is_told_in_one_line(samserve: Command, tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no picture")

    ended = samserve("predict", text, "--point", "1,1", *FAKE)

    assert ended.code == FAILURE
    assert "image.encoded: is not a JPEG, PNG or WebP file (IMAGE_UNREADABLE" in ended.err


def test_an_output_that_cannot_be_written_is_told_in_one_line(
    samserve: Command, image: Path, tmp_path: Path
) -> None:
    # A name that no file system takes, in a folder that is there.
    record = tmp_path / ("x" * 300)

    ended = samserve("predict", image, "--point", "1,1", "--json", record, *FAKE)

    assert ended.code == FAILURE
    assert f"samserve: error: {record}: File name too long\n" in ended.err


def test_a_server_that_is_not_there_is_told_in_one_line(samserve: Command) -> None:
    ended = samserve("models", "--server", "127.0.0.1:1")

    assert ended.code == FAILURE
    assert ended.err.startswith("samserve: error: the server cannot be reached: ")
    assert ended.err.count("\n") == 1


def test_a_repository_without_a_model_is_told_in_one_line(
    samserve: Command, tmp_path: Path
) -> None:
    ended = samserve("models", "--set", f"engine.model_repository={tmp_path}")

    assert (ended.code, ended.err) == (FAILURE, f"samserve: error: no model in {tmp_path}\n")


@pytest.mark.parametrize("option", ["--port", "--admin-port"])
def test_a_port_in_use_is_told_in_one_line(samserve: Command, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        free = ("--set", "server.port=0", "--set", "server.admin_port=0")

        ended = samserve("serve", option, port, *free, *FAKE)

    assert ended.code == FAILURE
    assert ended.err == (
        f"samserve: error: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    )
