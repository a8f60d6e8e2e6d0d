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


def test_it_drives_load_tells_how_it_went_and_draws_the_pages(tmp_path: Path) -> None:
    ended = subprocess.run(
        [*COMMAND, "--seconds", "10", "--once", "--draw", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    assert re.search(r"Prometheus: .* http://127\.0\.0\.1:\d+", ended.stdout)
    for method in ("Embed", "Predict", "AutoMask"):
        assert re.search(rf"{method} +\d+ +\d+ ms +\d+ ms", ended.stdout)
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(pictures) == len(list(dashboards()))
    for path in pictures:
        with Image.open(path) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 50
        assert str(path.name) in ended.stdout.replace("\n", "")


def test_ctrl_c_ends_all_of_it() -> None:
    with subprocess.Popen(
        [*COMMAND, "--seconds", "1"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as ours:
        assert ours.stdout is not None
        lines = iter(ours.stdout.readline, "")
        (folder,) = next(
            found.groups() for line in lines if (found := re.match(r"logs +(\S+)", line))
        )
        next(line for line in lines if "Ctrl-C" in line)
        ours.send_signal(signal.SIGINT)
        assert ours.wait(60) == 0

    assert not processes.members(ours.pid)
    assert not Path(folder).exists()
    # Those that run in sessions of their own are told by the files that they were given.
    told = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
    assert not [command for command in told if folder.encode() in command]
