"""`samserve export`, and `samserve models` on what it writes."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from samserve.app import default_repository
from samserve.cli import export_options
from samserve.cli.main import main

from tests.cli.conftest import RUN, Command, Result
from tests.oracle import sam2
from tests.oracle.sam import SMALL, original
from tests.support.waiting import until_sync

SAMPLE = Path(export_options.__file__).parents[1] / "export" / "samples" / "coffee.jpg"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "small.pth"
    torch.save(original(SMALL).state_dict(), path)
    return path


@dataclass(frozen=True)
class Exported:
    """The result of an export, and the repository that it wrote."""

    result: Result
    repository: Path


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("repository")
    command = ("export", checkpoint, "--repository", folder, "--name", "mine", "--image", SAMPLE)
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main([str(argument) for argument in command])
    return Exported(Result(code, out.getvalue(), err.getvalue()), folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_export_prints_what_it_wrote_and_models_shows_the_card(
    samserve: Command, checkpoint: Path, exported: Exported
) -> None:
    result, repository = exported.result, exported.repository
    served = ("--set", f"engine.model_repository={repository}")
    table = samserve("models", *served)
    card = samserve("models", "show", "mine", *served)
    record = json.loads(samserve("models", "--json", *served).out)["models"][0]["card"]

    assert result.code == 0
    assert f"wrote {repository / 'mine_encoder'}" in result.out
    assert "precision: fp32" in result.out
    assert names(repository) == ["mine_decoder", "mine_encoder"]
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


def test_every_step_is_printed_with_the_time_and_memory_so_far(exported: Exported) -> None:
    lines = exported.result.err.splitlines()
    steps = [re.fullmatch(r"\[ *(\d+) s, peak +(\d+) MiB\] (.+)", line) for line in lines[:-1]]
    texts = [step[3] for step in steps if step]
    assert len(texts) == len(lines) - 1
    assert [text.split()[0] for text in texts[:3]] == ["reading", "running", "tracing"]
    for column in (1, 2):
        values = [int(step[column]) for step in steps if step]
        assert values == sorted(values)
    # Python and torch need that much.
    assert min(values) > 100
    total = re.fullmatch(r"took \d+ s, at most (\d+) MiB of memory; wrote ([\d.]+) MiB", lines[-1])
    assert total
    assert int(total[1]) >= values[-1]
    files = [file for file in exported.repository.rglob("*") if file.is_file()]
    written = sum(file.stat().st_size for file in files)
    assert float(total[2]) == pytest.approx(written / 2**20, abs=0.051)


def error_of(result: Result) -> str:
    """Return the error message, which follows the steps."""
    *_, last = result.err.splitlines()
    assert last.startswith("samserve: error: ")
    return last.removeprefix("samserve: error: ")


def graphs_of(repository: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(repository.glob("*/1/model.onnx"))]


def test_the_chosen_key_and_prefix_are_exported(
    samserve: Command, checkpoint: Path, tmp_path: Path
) -> None:
    state = torch.load(checkpoint)
    ema = {f"net.teacher.{name}": value for name, value in state.items()}
    others = {f"net.student.{name}": value + 1 for name, value in state.items()}
    path = tmp_path / "small.pth"
    torch.save({"model": others, "ema": {**others, **ema}, "epoch": 3}, path)

    def export(file: Path, folder: str, *options: str) -> Result:
        repository = ("--repository", tmp_path / folder, "--no-parity-check", "--name", "small")
        return samserve("export", file, *repository, *options)

    plain = export(checkpoint, "plain")
    chosen = export(path, "chosen", "--key", "ema", "--prefix", "net.teacher.")
    other = export(path, "other", "--key", "model", "--prefix", "net.student")

    assert (plain.code, chosen.code, other.code) == (0, 0, 0)
    assert graphs_of(tmp_path / "chosen") == graphs_of(tmp_path / "plain")
    assert graphs_of(tmp_path / "other") != graphs_of(tmp_path / "plain")
    assert "source format: original, float32, key ema, prefix net.teacher." in chosen.out
    # Each error has the option that the next command needs.
    assert "under 'model' and 'ema': choose with --key" in error_of(export(path, "none"))
    several = error_of(export(path, "none", "--key", "ema"))
    assert "under 'net.student.', 'net.teacher.': choose one with --prefix" in several
    one = error_of(export(path, "none", "--key", "model"))
    assert one == "all names begin with 'net.student.': add --prefix net.student."
    assert not (tmp_path / "none").exists()


def test_only_families_that_need_the_transformers_library_require_it(
    samserve: Command, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sam2.save(sam2.model(), tmp_path / "toy")
    options = ("--repository", tmp_path / "repository", "--no-parity-check")
    monkeypatch.setitem(sys.modules, "transformers", None)

    sam = samserve("export", checkpoint, *options)
    other = samserve("export", folder, *options)

    assert sam.code == 0
    assert other.code == 1
    assert error_of(other).startswith(
        "this command requires transformers, which is not installed: pip install '.[export]'"
    )
    assert names(tmp_path / "repository") == ["small_decoder", "small_encoder"]


def test_show_of_a_model_without_a_card(samserve: Command, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(default_repository(), models)
    for config in models.glob("*/config.pbtxt"):
        lines = config.read_text().splitlines(keepends=True)
        config.write_text("".join(line for line in lines if "samserve.license" not in line))

    result = samserve("models", "show", "sam_tiny", "--set", f"engine.model_repository={models}")

    assert result.code == 0
    assert "card: none" in result.out


def test_options_before_a_subcommand_are_rejected(samserve: Command) -> None:
    result = samserve("models", "--server", "127.0.0.1:1", "show", "sam_tiny")

    assert result.code == 2
    assert "options must follow 'show', not precede it" in result.err


def test_show_of_an_unknown_model_names_the_served_ones(samserve: Command) -> None:
    result = samserve("models", "show", "sam_vit_x")

    assert result.code == 2
    assert result.error == "no model 'sam_vit_x' is served; served models: sam_tiny"


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
