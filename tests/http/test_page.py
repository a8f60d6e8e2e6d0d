"""The commands of `docs/http.md` work as they are written."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from pathlib import Path

from tests import sample_images
from tests.http.serving import http_service
from tests.rpc.test_generic_client import BUF, ROOT

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
    script = "set -euo pipefail\n" + "\n".join(commands)

    async with http_service() as service:
        script = script.replace("http://127.0.0.1:8080", service.http_address)
        folder = shlex.quote(os.path.dirname(BUF))
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", f"PATH={folder}:$PATH\n{script}"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = (each.decode() for each in await process.communicate())

    assert process.returncode == 0, err
    for part in ('"models":[', '"cocoRle":', '"summary"'):
        assert part in out
