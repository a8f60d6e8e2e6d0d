"""`samserve export`, and `samserve models` on what it writes."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from samserve.cli import export_options

from tests.cli.conftest import RUN, Command
from tests.oracle.sam import SMALL, original
from tests.support.waiting import until_sync

SAMPLE = Path(export_options.__file__).parents[1] / "export" / "samples" / "coffee.jpg"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "small.pth"
    torch.save(original(SMALL).state_dict(), path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_export_prints_what_it_wrote_and_models_shows_the_card(
    samserve: Command, checkpoint: Path, tmp_path: Path
) -> None:
    result = samserve(
        "export", checkpoint, "--repository", tmp_path, "--name", "mine", "--image", SAMPLE
    )
    served = ("--set", f"engine.model_repository={tmp_path}")
    table = samserve("models", *served)
    card = samserve("models", "show", "mine", *served)
    record = json.loads(samserve("models", "--json", *served).out)["models"][0]["card"]

    assert result.code == 0
    assert f"wrote {tmp_path / 'mine_encoder'}" in result.out
    assert "precision: fp32" in result.out
    assert names(tmp_path) == ["mine_decoder", "mine_encoder"]
    header, row = table.out.splitlines()
    assert row[header.index("precision") :].startswith("fp32")
    assert row[header.index("masks") :].startswith(("0.99", "1.00"))
    shown = dict(line.split(": ", 1) for line in card.out.splitlines())
    assert shown["source"] == "small.pth"
    assert shown["source sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert shown["parity"].startswith(("mean IoU 0.99", "mean IoU 1.0"))
    assert "25 prompts on 1 images" in shown["parity"]
    assert record["source_sha256"] == shown["source sha256"]
    assert record["parity"]["prompts"] == 25


def test_show_of_a_model_without_a_card(samserve: Command) -> None:
    result = samserve("models", "show", "sam_tiny")

    assert result.code == 0
    assert "card: none" in result.out


def test_options_before_a_subcommand_are_rejected(samserve: Command) -> None:
    result = samserve("models", "--server", "127.0.0.1:1", "show", "sam_tiny")

    assert result.code == 2
    assert "options must follow 'show', not precede it" in result.err


def test_show_of_an_unknown_model_names_the_served_ones(samserve: Command) -> None:
    result = samserve("models", "show", "sam_vit_h")

    assert result.code == 2
    assert result.error == "no model 'sam_vit_h' is served; served models: sam_tiny"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("missing.pth",), 1, "missing.pth: no such file or directory"),
        (("IMAGE",), 1, "coffee.jpg is neither a PyTorch file nor a safetensors file"),
        (("CHECKPOINT", "--precision", "int8"), 2, "--precision 'int8': expected fp32 or fp16"),
        (("CHECKPOINT", "--tensorrt", "int8"), 2, "--tensorrt 'int8': expected fp32 or fp16"),
        (("CHECKPOINT", "--gpus", "0,,1"), 2, "--gpus '0,,1': expected device numbers"),
        (("CHECKPOINT", "--gpus", "9999"), 2, "--gpus '9999': expected device numbers"),
        (("CHECKPOINT", "--name", "n" * 200), 1, "expected at most 128 letters"),
        (("CHECKPOINT", "--gpus", "1,1"), 2, "--gpus '1,1': expected device numbers"),
        (("CHECKPOINT", "--cpu-cores", "-1"), 2, "Invalid value for '--cpu-cores'"),
        (("CHECKPOINT", "--name", "../up"), 1, "model name '../up'"),
        (("CHECKPOINT", "--min-iou", "2"), 1, "from 0 to 1, not 2"),
        (
            ("CHECKPOINT", "--precision", "fp16", "--no-parity-check"),
            1,
            "fp16 requires the parity check",
        ),
        (("CHECKPOINT", "--image", "missing.jpg"), 2, "'missing.jpg' does not exist"),
    ],
)
def test_an_invalid_argument_is_reported_in_one_line_and_nothing_is_written(
    samserve: Command,
    checkpoint: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    text: str,
) -> None:
    files = {"CHECKPOINT": str(checkpoint), "IMAGE": str(SAMPLE)}
    given = [files.get(argument, argument) for argument in arguments]

    result = samserve("export", *given, "--repository", tmp_path / "repository")

    assert result.code == code
    lines = [line for line in result.err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert text in lines[0]
    assert "Traceback" not in result.err
    assert not (tmp_path / "repository").exists()


def test_a_missing_package_is_reported_with_the_command_that_installs_it(
    samserve: Command, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("samserve.export.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)

    result = samserve("export", checkpoint, "--repository", tmp_path)

    assert result.code == 1
    assert result.error == (
        "this command requires torch, which is not installed: "
        "pip install '.[export]' in a clone of samserve, "
        "or pip install 'FILE.whl[export]' with the file of its wheel"
    )


# The models are not published before the comparison ends.
COMPARE_WITHOUT_END = """
import time
from samserve.export import pipeline
pipeline._compare = lambda *_: time.sleep(3600)
"""


@pytest.mark.slow
def test_sigterm_removes_incomplete_models(checkpoint: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    program = COMPARE_WITHOUT_END + RUN
    command = [sys.executable, "-c", program, "export", checkpoint, "--repository", repository]
    process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
    try:
        until_sync(
            lambda: list(tmp_path.glob(".samserve-staging-*/*_encoder")) or process.poll(),
            timeout_s=240,
        )
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 130
    assert "Traceback" not in err
    assert names(tmp_path) == ["repository"]
    assert names(repository) == []
