"""Commands of the documentation and of the chart's notes succeed in the rendered pod."""

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
from harness.pod.images import resolve_triton_args
from tests import sample_images
from tests.chart.commands import NOT_RUN, commands
from tests.chart.rendered import container, notes, render
from tests.chart.running import helm_test, replica_of, tls_secret
from tests.support.cases import check_all

COMMANDS = commands()
EXEC_COMMANDS = {
    f"{each.page}: {each.text}": each.exec_arguments for each in COMMANDS if each.exec_arguments
}


def values(secret: str = "server") -> dict[str, object]:
    return {
        "engine": "onnx",
        "cache": {"local": {"memory": "64Mi"}},
        "tls": {"secret": secret},
        "shutdown": {"drainDelaySeconds": 0},
    }


def test_commands_that_are_not_run_are_of_known_programs() -> None:
    """`pytest -rP` prints them. The others run in the test below."""
    skipped = [each for each in COMMANDS if not each.exec_arguments]

    print("\n".join(f"not run, {NOT_RUN[each.text.split()[0]]}: {each.text}" for each in skipped))
    # All others run, and their list is not empty.
    assert {each.text.split()[0] for each in skipped} <= NOT_RUN.keys()
    assert {command[0] for command in EXEC_COMMANDS.values()} >= {"samserve", "df", "sh"}


def run_notes(text: str, folder: Path, port: int) -> str:
    """Run the notes' commands for the local machine, with *port* as the forwarded port."""
    (block,) = re.findall(r"From this machine:\n\n(.*?)\n\n", text, re.DOTALL)
    # Without kubectl: the folder has the files that it would write, and *port* is open.
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
async def test_pod_with_a_secret_from_kubectl_runs_the_documented_commands(tmp_path: Path) -> None:
    """The Secret has a certificate and a key, and no CA; its name is that of the public API."""
    secrets = {"server": tls_secret(trustme.CA().issue_cert("sam.example"))}
    objects = render(values())
    (tmp_path / "server.crt").write_bytes(secrets["server"]["tls.crt"])
    (tmp_path / "photo.jpg").write_bytes(
        sample_images.encode(sample_images.noise(320, 480), "JPEG")
    )
    async with replica_of(objects, secrets=secrets) as pod:
        port = pod.port(50051)
        test_output = await helm_test(objects, f"127.0.0.1:{port}", secrets)
        notes_output = await asyncio.to_thread(run_notes, notes(values()), tmp_path, port)
        results = {}
        for name, command in EXEC_COMMANDS.items():
            arguments = ["sam_tiny" if word == "NAME" else word for word in command]
            results[name] = await pod.execute(arguments)
        # Any certificate other than the one served is rejected.
        other = {"server": tls_secret(trustme.CA().issue_cert("sam.example"))}
        with pytest.raises(HarnessError, match="doctor exited with status 1"):
            await helm_test(objects, f"127.0.0.1:{port}", other)

    assert "predicted_iou=" in test_output
    assert "predicted_iou=" in notes_output
    check_all(succeeded, results)
    texts = [text for _, text in results.values()]
    assert any("is ready and serves sam_tiny" in text for text in texts)
    # The settings of the server, not the defaults.
    assert any("local tier" in text and "64.0 MiB" in text for text in texts)


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
def test_triton_listens_on_the_ip_family_of_its_clients(
    address: str, families: list[str], http: str, metrics: str
) -> None:
    """Probes use the pod's primary address, Prometheus the Service's primary family."""
    triton = container(render({"service": {"ipFamilies": families}}), "triton")

    arguments = resolve_triton_args([*triton["command"], *triton["args"]], {"POD_IP": address})

    assert arguments[:2] == [f"--http-address={http}", f"--metrics-address={metrics}"]
    assert arguments[2:] == triton["args"][2:]
