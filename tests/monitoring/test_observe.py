"""``make observe``: everything runs, under load, and says where to look."""

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
COMMAND = [sys.executable, "-m", "monitoring.live"]


def test_it_drives_load_tells_how_it_went_draws_the_pages_and_ends_with_ctrl_c(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [*COMMAND, "--seconds", "5", "--draw", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as ours:
        assert ours.stdout is not None
        lines = []
        for line in ours.stdout:
            # Once: what is interrupted while it writes a line may write it again.
            if "Ctrl-C" in line and not any("Ctrl-C" in each for each in lines):
                ours.send_signal(signal.SIGINT)
            lines.append(line)
        assert ours.wait(120) == 0

    said = "".join(lines)
    assert "Ctrl-C" in said
    assert re.search(r"Prometheus: .* http://127\.0\.0\.1:\d+", said)
    for method in ("Embed", "Predict", "AutoMask"):
        assert re.search(rf"{method} +\d+ +\d+ ms +\d+ ms", said)
    drawn = sorted(tmp_path.glob("*.png"))
    assert len(drawn) == len(list(dashboards()))
    for path in drawn:
        with Image.open(path) as image:
            assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 50
        assert path.name in said.replace("\n", "")

    assert not processes.members(ours.pid)
    folder = re.search(r"^logs +(\S+)", said, re.MULTILINE)
    assert folder
    assert not Path(folder[1]).exists()
    # Those that run in sessions of their own are told by the files that they were given.
    told = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
    assert not [command for command in told if folder[1].encode() in command]
