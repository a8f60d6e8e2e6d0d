"""The lines with time and memory of a command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from samserve.cli.costs import Costs


def test_steps_and_the_total_have_the_time_and_memory_so_far(tmp_path: Path) -> None:
    times, peaks = iter([100.0, 102.6, 161.2]), iter([300 << 20, 3312 << 20])
    (tmp_path / "encoder" / "1").mkdir(parents=True)
    (tmp_path / "encoder" / "1" / "model.onnx").write_bytes(bytes(3 << 20))
    (tmp_path / "encoder" / "config.pbtxt").write_bytes(bytes(1 << 18))
    (tmp_path / "unrelated").write_bytes(bytes(1 << 20))

    costs = Costs(lambda: next(times), lambda: next(peaks))

    assert costs.step("reading") == "[   3 s, peak   300 MiB] reading"
    assert costs.total([tmp_path / "encoder"]) == (
        "took 61 s, at most 3312 MiB of memory; wrote 3.2 MiB"
    )


MEASURE = """
from samserve.system.limits import peak_memory_bytes
print(peak_memory_bytes())
largest = b"x" * (64 << 20)
print(peak_memory_bytes())
del largest
print(peak_memory_bytes())
"""


def test_peak_memory_grows_with_use_and_stays_when_memory_is_released() -> None:
    output = subprocess.run([sys.executable, "-c", MEASURE], stdout=subprocess.PIPE, check=True)

    before, during, after = (int(line) >> 20 for line in output.stdout.split())
    # The system counts in batches of pages.
    assert 60 < during - before < 70
    assert abs(after - during) < 4
    # Of this program, not of the one that started it.
    assert before < 60
