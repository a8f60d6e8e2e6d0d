"""The fuzzing targets on deterministic inputs, and the fuzzing program."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz import mutation, target

ROOT = Path(__file__).parents[1]
INPUTS = 1000
# The machine may be busy; the program's own limit is 1 s.
LIMITS = target.Limits(seconds=10)

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not available for this platform"
)


@pytest.mark.parametrize("name", target.NAMES)
def test_inputs_satisfy_the_properties_of_the_target(name: str) -> None:
    chosen = target.load(name)
    inputs = list(mutation.inputs(chosen, INPUTS, 0, 4096))
    target.reset_peak()

    accepted = sum(target.check(chosen, data, LIMITS) for data in inputs)

    # Otherwise the mutations are too strong or too weak to be useful.
    assert INPUTS // 50 < accepted < INPUTS - INPUTS // 50
    assert inputs == list(mutation.inputs(chosen, INPUTS, 0, 4096)), "deterministic"


def program(*arguments: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fuzz", *arguments],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{path}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@needs_atheris
@pytest.mark.slow
def test_program_runs_a_target(tmp_path: Path) -> None:
    done = program("rle", "--inputs", "2000", "--seconds", "10", "--findings", str(tmp_path))

    assert done.returncode == 0, done.stdout + done.stderr
    heading, row = (line.split() for line in done.stdout.splitlines()[:2])
    assert heading == ["target", "inputs", "seeds", "corpus", "finding"]
    assert [row[0], int(row[1]) >= 2000, row[4]] == ["rle", True, "-"]
    assert int(row[3]) > int(row[2]), "the corpus has grown"
    assert list(tmp_path.iterdir()) == []


BROKEN_TARGETS = {
    "raises": ("raise ValueError('not documented')", "ValueError"),
    "exits": ("raise SystemExit", "raised SystemExit"),
    "internal": ("raise errors.EngineFailure('')", "EngineFailure"),
    "long_status": ("raise errors.InvalidRequest('x' * 9000, '')", "its status has"),
    "sleeps": ("time.sleep(0.3)", "took"),
    "allocates": ("bytearray(b'x') * (128 << 20)", "the process grew"),
    "hangs": ("time.sleep(3600)", "timeout"),
    "crashes": ("os.abort()", "deadly signal"),
}


@needs_atheris
@pytest.mark.parametrize(
    "what",
    [pytest.param(what, marks=[pytest.mark.slow] * (what != "raises")) for what in BROKEN_TARGETS],
)
def test_program_reports_findings(what: str, tmp_path: Path) -> None:
    code, expected = BROKEN_TARGETS[what]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / f"{what}.py").write_text(
        "import os, time\n"
        "from samserve import errors\n"
        "def seeds(): return [b'good', b'evil']\n"
        "def run(data):\n"
        f"    if data == b'evil': {code}\n"
    )
    findings = tmp_path / "findings"
    seconds = "0.1" if what in ("sleeps", "hangs") else "5"
    limits = ("--seconds", seconds, "--memory-mb", "64", "--findings", str(findings))

    done = program(f"broken.{what}", "--inputs", "10", *limits, path=tmp_path)

    assert done.returncode == 1, done.stdout + done.stderr
    assert expected in done.stdout
    assert str(findings) in done.stdout
    assert b"evil" in [file.read_bytes() for file in findings.iterdir()]
