"""The commands of `docs/http.md` work as they are written."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from pathlib import Path

from samserve.app import Running

from tests import sample_images
from tests.http.serving import http_service
from tests.http.web_pages import page_service, write_page
from tests.rpc.test_generic_client import BUF, ROOT
from tests.secret_leaks import secret

PAGE = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
STARTS_A_SERVER = "samserve serve"


async def test_commands_of_the_page_succeed(tmp_path: Path) -> None:
    image = sample_images.encode(sample_images.noise(480, 640), "JPEG")
    (tmp_path / "photo.jpg").write_bytes(image)
    (tmp_path / "proto").symlink_to(ROOT / "proto")
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    # Not those with jq, which a machine may not have.
    commands = [block for block in blocks if STARTS_A_SERVER not in block and "jq " not in block]
    assert len(commands) == 3
    script = "\n".join(commands)

    async with http_service() as service:
        out = await run(script, tmp_path, service)

    for part in ('"models":[', '"cocoRle":', '"summary"'):
        assert part in out


async def test_a_session_begins_as_the_page_describes(tmp_path: Path) -> None:
    section = PAGE.partition("\n## Sessions\n")[2]
    found = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert found

    async with page_service(write_page(tmp_path)) as service:
        assert service.page is not None
        assert service.page.sessions is not None
        token = secret(service.page.sessions.issue())
        api = "http://127.0.0.1:8080/samserve.v1.SegmentationService"
        commands = re.sub(r"read -r TOKEN.*", f"TOKEN={token}", found[1])
        out = await run(f"API={api}\n{commands}", tmp_path, service)

    assert '"models":[' in out


async def run(script: str, folder: Path, service: Running) -> str:
    """Run commands for a service, and return their output."""
    script = script.replace("http://127.0.0.1:8080", service.http_address)
    programs = shlex.quote(os.path.dirname(BUF))
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f"set -euo pipefail\nPATH={programs}:$PATH\n{script}"),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = (each.decode() for each in await process.communicate())
    assert process.returncode == 0, err
    return out
