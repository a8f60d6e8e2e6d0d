"""What documents and the chart's notes tell people to run in a pod works in the rendered pod."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from harness.errors import HarnessError
from harness.pod.images import given_to_triton
from tests import pictures
from tests.chart.commands import NOT_RUN, commands
from tests.chart.rendered import container, notes, render
from tests.chart.running import helm_test, pair, replica_of
from tests.support.together import check_all

COMMANDS = commands()
INSIDE = {f"{each.page}: {each.text}": each.inside for each in COMMANDS if each.inside}


def values(secret: str = "server") -> dict[str, object]:
    return {
        "engine": "onnx",
        "cache": {"memory": "64Mi"},
        "tls": {"secret": secret},
        "shutdown": {"drainSeconds": 0},
    }


def test_commands_that_are_not_run_are_known() -> None:
    """The others are below; `pytest -rP` prints these."""
    left = [each for each in COMMANDS if not each.inside]

    print("\n".join(f"not run, {NOT_RUN[each.text.split()[0]]}: {each.text}" for each in left))
    # Everything else is run, and there is something to run.
    assert {each.text.split()[0] for each in left} <= NOT_RUN.keys()
    assert {command[0] for command in INSIDE.values()} >= {"samserve", "df", "sh"}


def of_notes(text: str, folder: Path, port: int) -> str:
    """Run what the notes say is to be run on one's own machine, with a port that leads there."""
    (block,) = re.findall(r"From this machine:\n\n(.*?)\n\n", text, re.DOTALL)
    # The cluster is not asked: what it would give lies in the folder, and the port is open.
    lines = [line.strip() for line in block.splitlines() if "kubectl" not in line]
    assert lines[-1].startswith("samserve predict")
    program = folder / "samserve"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m samserve "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["sh", "-ec", "\n".join(lines).replace(":50051", f":{port}")],
        cwd=folder,
        env={"PATH": f"{folder}:{os.defpath}", "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
async def test_a_pod_with_a_secret_of_kubectl(tmp_path: Path) -> None:
    """It has a certificate and a key, and no CA; the name is that of the public API."""
    secrets = {"server": pair(trustme.CA().issue_cert("sam.example"))}
    objects = render(values())
    (tmp_path / "server.crt").write_bytes(secrets["server"]["tls.crt"])
    (tmp_path / "photo.jpg").write_bytes(pictures.file_of(pictures.noise(320, 480), "JPEG"))
    async with replica_of(objects, secrets=secrets) as pod:
        port = pod.port(50051)
        tested = await helm_test(objects, f"127.0.0.1:{port}", secrets)
        noted = await asyncio.to_thread(of_notes, notes(values()), tmp_path, port)
        said = {}
        for name, command in INSIDE.items():
            here = ["sam_tiny" if word == "NAME" else word for word in command]
            said[name] = await pod.execute(here)
        # It is the served certificate that counts.
        other = {"server": pair(trustme.CA().issue_cert("sam.example"))}
        with pytest.raises(HarnessError, match="doctor ended with 1"):
            await helm_test(objects, f"127.0.0.1:{port}", other)

    assert "predicted_iou=" in tested
    assert "predicted_iou=" in noted
    check_all(succeeded, said)
    texts = [text for _, text in said.values()]
    assert any("is ready and serves sam_tiny" in text for text in texts)
    # The settings of the server, and not the defaults.
    assert any("in memory" in text and "64.0 MiB" in text for text in texts)


def succeeded(ended: tuple[int, str]) -> None:
    status, text = ended
    assert status == 0, text


@pytest.mark.parametrize(
    ("address", "families", "http", "metrics"),
    [
        ("10.0.0.7", [], "0.0.0.0", "0.0.0.0"),
        ("fd00::7", [], "ipv6:::", "ipv6:::"),
        ("10.0.0.7", ["IPv6", "IPv4"], "0.0.0.0", "ipv6:::"),
        ("fd00::7", ["IPv4"], "ipv6:::", "0.0.0.0"),
    ],
)
def test_triton_listens_where_it_is_asked(
    address: str, families: list[str], http: str, metrics: str
) -> None:
    """Probes ask the pod's address, Prometheus one of the first family of the Service."""
    triton = container(render({"service": {"ipFamilies": families}}), "triton")

    given = given_to_triton([*triton["command"], *triton["args"]], {"POD_IP": address})

    assert given[:2] == [f"--http-address={http}", f"--metrics-address={metrics}"]
    assert given[2:] == triton["args"][2:]
