"""The fuzzing targets over inputs that are always the same, and the fuzzing program itself."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from fuzz import mutation, target
from fuzz.recorder import Bounds, Recorder

ROOT = Path(__file__).parents[1]
INPUTS = 3000
MOST_BYTES = 4096
# The machine may be busy; the program itself allows 1 s.
BOUNDS = Bounds(seconds=10)

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not there for this platform"
)


@pytest.mark.parametrize("name", target.NAMES)
def test_no_input_breaks_a_rule(name: str, tmp_path: Path) -> None:
    chosen = target.load(name)
    recorder = Recorder(chosen, tmp_path, BOUNDS)

    for data in mutation.inputs(chosen, INPUTS, 0, MOST_BYTES):
        recorder(data)

    report = recorder.report
    assert report.findings == {}
    assert report.inputs == INPUTS
    # Otherwise the mutations are too wild, or too tame, to find anything.
    assert report.accepted > INPUTS // 25
    assert report.refused > INPUTS // 25


def test_structured_mutations_bear_any_bytes() -> None:
    for name in target.NAMES:
        chosen, random = target.load(name), Random(0)
        for length in range(0, 200, 7):
            assert isinstance(chosen.mutate(random.randbytes(length), random), bytes), name


def test_inputs_are_always_the_same() -> None:
    for name in target.NAMES:
        chosen = target.load(name)
        first, second = (list(mutation.inputs(chosen, 50, 7, MOST_BYTES)) for _ in range(2))
        assert first == second, name


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
def test_the_program_runs_a_target(tmp_path: Path) -> None:
    findings = tmp_path / "findings"

    words = ("--inputs", "2000", "--seed", "1", "--seconds", "10", "--findings", str(findings))
    done = program("rle", *words)

    assert done.returncode == 0, done.stdout + done.stderr
    heading, row = (line.split() for line in done.stdout.splitlines()[:2])
    assert heading[:2] == ["target", "inputs"]
    assert row[0] == "rle"
    assert int(row[1]) >= 2000
    assert int(row[3]) > int(row[2]), "the corpus has grown"
    assert row[-1] == "0"
    assert list(findings.iterdir()) == []


BROKEN = {
    "raises": "raise ValueError('nobody documented this')",
    "sleeps": "time.sleep(0.3)",
    "allocates": "bytearray(b'x') * (128 << 20)",
    "hangs": "time.sleep(3600)",
    "crashes": "os.abort()",
}


NOTICED = [pytest.param(what, marks=[pytest.mark.slow] * (what != "raises")) for what in BROKEN]


@needs_atheris
@pytest.mark.parametrize("what", NOTICED)
def test_the_program_notices(what: str, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / f"{what}.py").write_text(
        "import os, time\n"
        "def seeds(): return [b'good', b'evil']\n"
        "def mutate(data, random): return data\n"
        "def run(data):\n"
        f"    if data == b'evil': {BROKEN[what]}\n"
    )
    findings = tmp_path / "findings"
    limits = ("--seconds", "0.1", "--memory-mb", "64", "--findings", str(findings))

    done = program(f"broken.{what}", "--inputs", "10", *limits, path=tmp_path)

    assert done.returncode == 1, done.stdout + done.stderr
    assert str(findings) in done.stdout
    assert b"evil" in [file.read_bytes() for file in findings.iterdir()]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise ValueError", "ValueError"),
        ("raise SystemExit", "SystemExit"),
        ("assert data", "AssertionError"),
        ("raise errors.EngineFailure('')", "EngineFailure"),
        ("raise errors.InvalidRequest('x' * 9000, '')", "its status has"),
    ],
)
def test_whatever_is_no_answer_is_a_finding(code: str, told: str, tmp_path: Path) -> None:
    def run(data: bytes) -> None:
        exec(f"from samserve import errors\n{code}")

    recorder = Recorder(
        target.Target("broken", run, lambda: [b""], lambda data, random: data), tmp_path, BOUNDS
    )

    recorder(b"")
    recorder(b"")

    assert told in "".join([*recorder.report.findings, *recorder.report.findings.values()])
    assert len(recorder.report.findings) == 1, "the same again is no other finding"
    assert len(list(tmp_path.glob("*.txt"))) == 1
