"""Errors are one line on standard error and an exit code, never a traceback."""

from __future__ import annotations

import io
import itertools
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from samserve.system import addresses

from tests.cli.conftest import FAKE, Command

USAGE, FAILURE = 2, 1
PREDICT = ("predict", "IMAGE", *FAKE)
POINT = ("predict", "IMAGE", "--point", "1,1")
SERVER = ("--server", "h:1")
# How Python represents the byte 0xff in a file name.
BYTE = "\udcff"
ARRAYS = {
    "CUBE.npy": np.zeros((2, 2, 2)),
    "WIDE.npy": np.zeros((4, 6)),
    "TABLE.npy": np.zeros((4, 4), [("a", "i4"), ("b", "f4")]),
}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("predict", "IMAGE"), "no prompt: pass --point, --box or --mask"),
        (("predict", "missing.png", "--point", "1,1"), "'missing.png' does not exist"),
        (("embed", "missing.png"), "'missing.png' does not exist"),
        (("automask", "missing.png"), "'missing.png' does not exist"),
        (("automask", "FOLDER"), "is a directory"),
        (("predict", "--point", "1,1"), "no image: pass IMAGE or --embedding"),
        (("predict", "--point", "1,1", "--embedding", "id"), "--embedding requires --server"),
        (
            ("predict", "--point", "1,1", "--embedding", "a.png", *SERVER),
            "--embedding 'a.png': is not an embedding id",
        ),
        (
            ("predict", "FOLDER", "--point", "1,1", "--embedding", "id", *SERVER),
            "--embedding is that of a single image",
        ),
        (
            ("predict", "--point", "1,1", "--embedding", "id", "--out", "a.png", *SERVER),
            "--out draws on the image: pass IMAGE",
        ),
        ((*POINT, "--mask-out", "a.jpg"), "--mask-out a.jpg: the name must end in .png or .npy"),
        ((*POINT, "--logits-out", "a.png"), "--logits-out a.png: the name must end in .npy"),
        ((*POINT, "--mask-out", "no/a.png"), "--mask-out no/a.png: no is not a directory"),
        ((*POINT, "--tolerance", "2"), "--tolerance requires --format polygons"),
        (("automask", "IMAGE", "--min-area", "2"), "--min-area requires --format polygons"),
        ((*POINT, "--format", "box", "--out", "a.png"), "choose another --format than box"),
        (
            (*POINT, "--format", "polygons", "--mask-out", "a.png"),
            "--mask-out needs exact masks: choose another --format",
        ),
        ((*POINT, "--format", "svg"), "'--format': 'svg' is not one of"),
        ((*POINT, "--min-hole-area", "-1"), "'--min-hole-area': must be at least 0; got '-1'"),
        ((*POINT, "--min-area", "9999999999"), "'--min-area': must be at most 2147483647"),
        (("predict", "IMAGE", "--point", "1"), "--point '1': expected X,Y"),
        (("predict", "IMAGE", "--point", "1,a"), "--point '1,a': expected X,Y"),
        (("predict", "IMAGE", "--point", "1,1,7"), "--point '1,1,7': the label must be 1"),
        (("predict", "IMAGE", "--box", "1,2,3"), "--box '1,2,3': expected X0,Y0,X1,Y1"),
        (
            ("predict", "IMAGE", "--box", "1,1,2,2", "--box", "1,1,3,3", "--point", "1,1"),
            "several --box describe several objects",
        ),
        (("predict", "IMAGE", "--mask", "TEXT"), "is not a JPEG, PNG or WebP file"),
        (("predict", "IMAGE", "--mask", "BROKEN.npy"), "is not a numpy array"),
        (("predict", "IMAGE", "--mask", "CUBE.npy"), "must have two axes, has 3"),
        (("predict", "IMAGE", "--mask", "WIDE.npy"), "[4, 6]; save the mask of an image as bool"),
        (("predict", "IMAGE", "--mask", "TABLE.npy"), "must contain bool, integers or floats"),
        (
            ("predict", "IMAGE", "--point", "1,1", "--multimask", "many"),
            "'--multimask': 'many' is not one of",
        ),
        (("predict", "IMAGE", "--point", "1,1", "--out", "a.gif"), "--out a.gif: the name must"),
        (("predict", "IMAGE", "--point", "1,1", "--out", "no/a.png"), "no is not a directory"),
        (("predict", "IMAGE", "--point", "1,1", "--json", "no/a.json"), "no is not a directory"),
        (("predict", "IMAGE", "--point", "1,1", "--server", "host"), "expected HOST:PORT"),
        (
            ("models", "--server", "localhost:1", "--set", "cache.ttl_s=1"),
            "--config and --set apply to the server that this command starts",
        ),
        (("automask", "IMAGE", "--points-per-side", "many"), "'many' is not a whole number"),
        (("automask", "IMAGE", "--points-per-side", "99999999999"), "does not fit"),
        (("serve", "--port", "many"), "'--port': must be a whole number; got 'many'"),
        (("automask", "IMAGE", "--pred-iou-thresh", "x"), "must be a number; got 'x'"),
        (
            ("cache", "warm", ".", "--server", "a:1", "--concurrency", "0"),
            "'--concurrency': must be at least 1; got '0'",
        ),
        (("cache", "rm", "a.jpg", "--server", "a:1"), "'a.jpg': is not an embedding id"),
        (("serve", "--config", "TABLE"), "section server: must be a table of names"),
        (("automask", "IMAGE", "--roi", "1,2"), "--roi '1,2': expected X0,Y0,X1,Y1"),
        (("automask", "IMAGE", "--point-grids", "TEXT"), "expected a JSON list"),
        (("models", "--set", "cache.ttl_s"), "--set 'cache.ttl_s': expected SECTION.NAME=VALUE"),
        (
            ("models", "--set", "cache.ttl=1"),
            "unknown setting cache.ttl: did you mean cache.ttl_s?",
        ),
        (
            ("models", "--set", "cache.ttl_s=never"),
            "cache.ttl_s: must be a number; got 'never'",
        ),
        (
            ("models", "--set", "cache.tll_s=1"),
            "unknown setting cache.tll_s: did you mean cache.ttl_s?",
        ),
        (("models", "--set", "triton.url=http://a:1"), "triton.url: is a URL: write a:1 instead"),
        (("models", "--set", "trace.endpoint=a:1"), "trace.endpoint: expected http://HOST:PORT"),
        (("config", "--set", "server.host=0.0.0.0:5"), "expected a host without a port"),
        (("models", "--server", "http://a:1"), "--server: is a URL: write a:1 instead"),
        (("models", "--server", "::1:50051"), "must be in brackets: [::1]:50051"),
        (("models", "--config", "missing.toml"), "'missing.toml' does not exist"),
        (("models", "--config", "TEXT"), "is not valid TOML"),
        (("cache", "warm", "FOLDER"), "warm requires --server HOST:PORT"),
        (("cache", "rm", "id"), "rm requires --server HOST:PORT"),
        (("cache", "warm", "FOLDER", "--server", "host"), "--server: 'host': expected HOST:PORT"),
        (("cache", "warm", "no", *SERVER), "'no' does not exist"),
        (("cache", "warm", "EMPTY", *SERVER), "JPEG 2000 or PNM file (--recursive"),
        (("cache", "warm", "FOLDER", *SERVER, "--json", "no/a"), "no is not a directory"),
        (
            ("cache", "warm", "FOLDER", *SERVER, "--no-wait", "--durable"),
            "--durable and --no-wait exclude each other",
        ),
        (("cache", "rm", *SERVER), "Missing argument 'ID"),
        (("cache", "rm", "a\nb", *SERVER), "'a\\nb': is not an embedding id"),
        (("cache", "rm", "-", *SERVER), "standard input, line 2: not a record of `warm --json`"),
        (("cache", "stats", "--set", "cache.node=a:1"), "unknown setting cache.node"),
        (("cache", "stats", "--set", "cache.shared.nodes=a"), "expected HOST:PORT"),
        (("cache", "stats", "--json", "no/a"), "no is not a directory"),
        (("embed", "IMAGE", "--model", f"a{BYTE}"), "is not UTF-8"),
        (("embed", "IMAGE", "--server", f"{BYTE}:1"), "is not UTF-8"),
        (("predict", "IMAGE", "--point", f"1,{BYTE}"), "is not UTF-8"),
        (("models", "--set", f"engine.kind={BYTE}"), "is not UTF-8"),
        (("config", "--set", f"server.host={BYTE}"), "is not UTF-8"),
        (("keys", "create", "--tenant", BYTE), "is not UTF-8"),
        (("keys", "create", "--tenant", "a", "--note", BYTE), "is not UTF-8"),
        (("cache", "rm", BYTE, *SERVER), "is not UTF-8"),
        (("models", "pull", BYTE, "--repository", "FOLDER"), "is not UTF-8"),
        (("cache", "nonsense"), "No such command 'nonsense'"),
        (("nonsense",), "No such command 'nonsense'"),
        (("models", "--nonsense"), "No such option: --nonsense"),
    ],
    ids=ascii,
)
def test_a_usage_error_is_one_line_and_exit_code_two(
    samserve: Command, files: dict[str, Path], arguments: tuple[str, ...], text: str
) -> None:
    result = samserve(*(files.get(part, part) for part in arguments))

    assert result.code == USAGE
    assert text in result.error
    assert result.out == ""


@pytest.fixture
def files(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The files that the arguments name, and a standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'id\n{"name": "x"}\n')))
    files = {name: tmp_path / name for name in ("TEXT", "TABLE", *ARRAYS, "BROKEN.npy", "EMPTY")}
    files["TABLE"].write_text("server = 3\n")
    files["TEXT"].write_text("no image, no TOML, no JSON\n")
    files["BROKEN.npy"].write_bytes(b"\x93NUMPY")
    files["EMPTY"].mkdir()
    for name, array in ARRAYS.items():
        np.save(files[name], array)
    # A name that no file system accepts, in an existing directory.
    long = tmp_path / ("x" * 300)
    return {"IMAGE": image, "FOLDER": image.parent, "LONG": long, **files}


def test_the_environment_may_name_the_settings_file(
    samserve: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[limits]\nmax_prompts = 7\n")
    monkeypatch.setenv("SAMSERVE_CONFIG", str(file))
    assert "prompts = 7\n" in samserve("config").out
    other = tmp_path / "other.toml"
    other.write_text("[limits]\nmax_prompts = 8\n")
    assert "prompts = 8\n" in samserve("config", "--config", other).out

    file.write_text("prompts =")
    assert f"{file} is not valid TOML" in samserve("config").err
    file.unlink()
    result = samserve("config")
    assert (result.code, result.out) == (USAGE, "")
    assert f"SAMSERVE_CONFIG: there is no file {file}" in result.err


def test_each_invalid_setting_is_one_line(samserve: Command) -> None:
    result = samserve("models", "--set", "cache.ttl_s=-1", "--set", "engine.kind=magic")

    assert result.code == USAGE
    assert [line.split()[3] for line in result.err.splitlines()] == ["engine.kind:", "cache.ttl_s:"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((*PREDICT, "--point", "65,1"), "prompts[0].points[0].x: must be from 0 to 64"),
        ((*PREDICT, "--point", "nan,1"), "prompts[0].points[0].x: must be finite"),
        ((*PREDICT, "--box", "9,9,1,20"), "prompts[0].box.x_max: must be greater"),
        ((*PREDICT, "--box", "9,9,1,20"), "(INVALID_ARGUMENT, request "),
        ((*PREDICT, "--point", "1,1", "--model", "nope"), "no model 'nope'"),
        ((*PREDICT, "--point", "1,1", "--model", "nope"), "(MODEL_NOT_FOUND, request "),
        (
            ("predict", "TEXT", "--point", "1,1", *FAKE),
            "TEXT: is not an image: expected JPEG, PNG, WebP, or another format that Pillow reads",
        ),
        (
            (*PREDICT, "--point", "1,1", "--clip-to-box"),
            "prompts[0].box: is required by clip_to_box",
        ),
        ((*PREDICT, "--point", "1,1", "--json", "LONG"), ": File name too long"),
        (("models", "--server", "127.0.0.1:1"), "the server is unreachable: "),
        (("cache", "rm", "id", "--server", "127.0.0.1:1"), "the server is unreachable: "),
        (("models", "--set", "engine.model_repository=no"), "no model in no"),
    ],
)
def test_a_failure_is_one_line_and_exit_code_one(
    samserve: Command, files: dict[str, Path], arguments: tuple[str, ...], text: str
) -> None:
    result = samserve(*(files.get(part, part) for part in arguments))

    assert result.code == FAILURE
    assert text in result.error


def test_warming_an_unreachable_server_attempts_no_image(samserve: Command, image: Path) -> None:
    result = samserve("cache", "warm", image.parent, "--server", "127.0.0.1:1")

    assert (result.code, result.out.splitlines()[-1]) == (FAILURE, "not attempted: 1")
    assert result.error.startswith("the server is unreachable: ")


@pytest.mark.parametrize("option", ["--port", "--admin-port"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_in_use_is_reported_in_one_line(samserve: Command, option: str, host: str) -> None:
    family = socket.AF_INET6 if host == "::1" else socket.AF_INET
    with socket.create_server((host, 0), family=family) as taken:
        port = taken.getsockname()[1]
        settings = {"port": 0, "admin_port": 0, "host": host, "admin_host": host}
        free = [("--set", f"server.{name}={value}") for name, value in settings.items()]

        result = samserve("serve", option, port, *itertools.chain(*free), *FAKE)

    assert result.code == FAILURE
    assert result.error == (
        f"cannot listen on {addresses.join(host, port)}: Address already in use"
    )
