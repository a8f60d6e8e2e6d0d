"""``make observe``: the whole system runs under load and prints its addresses."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from harness.triton import processes
from monitoring.queries import dashboards

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "monitoring.live", "--faults"]


def test_it_runs_load_prints_a_summary_draws_dashboards_and_ends_with_ctrl_c(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [*COMMAND, "--seconds", "5", "--draw", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            # Once: a process that is interrupted while it writes a line may write it again.
            if "Ctrl-C" in line and not any("Ctrl-C" in each for each in lines):
                process.send_signal(signal.SIGINT)
            lines.append(line)
        assert process.wait(120) == 0

    output = "".join(lines)
    assert "Ctrl-C" in output
    assert re.search(r"Prometheus .* http://127\.0\.0\.1:\d+", output)
    for method in ("Embed", "Predict", "AutoMask"):
        assert re.search(rf"{method} +\d+ +\d+ ms +\d+ ms", output)
    drawn = sorted(tmp_path.glob("*.png"))
    assert len(drawn) == len(list(dashboards()))
    for path in drawn:
        with Image.open(path) as image:
            assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 50
        assert path.name in output.replace("\n", "")

    assert not processes.members(process.pid)
    folder = re.search(r"^logs +(\S+)", output, re.MULTILINE)
    assert folder
    assert not Path(folder[1]).exists()
    # Processes in other sessions are identified by the files in their arguments.
    commands = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
    assert not [command for command in commands if folder[1].encode() in command]
