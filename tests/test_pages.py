"""Links of the pages lead somewhere, and their commands are commands of the product."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from samserve.bridge.settings import BridgeSettings
from samserve.cli.configuration import load_settings
from samserve.cli.program import app
from typer.core import TyperGroup
from typer.main import get_command

from harness.triton.ports import free_ports
from tests import sample_images
from tests.chart.commands import commands_in

ROOT = Path(__file__).parents[1]
LISTED = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard", "*.md"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
)
# The chart's README is generated from `chart/readme.md`, whose links are meant from there.
PAGES = [ROOT / name for name in LISTED.stdout.split() if name != "chart/readme.md"]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"(?m)^#+ (.+)$", _FENCED.sub("", page.read_text(encoding="utf-8")))
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {each.replace(" ", "-") for each in plain}


def broken_links(page: Path) -> Iterator[str]:
    for link in _LINK.findall(_FENCED.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    assert list(broken_links(page)) == []


def samserve_commands() -> list[tuple[str, list[str]]]:
    """Return the page and the arguments of each `samserve` command in a shell block."""
    found = []
    for page in PAGES:
        for text in commands_in(page.read_text(encoding="utf-8")):
            if re.match(r"\(?(?:\S*/)?samserve(?: |$)", text):
                found.append((page.name, shlex.split(text.strip("()"))[1:]))
    return found


def unknown_in(arguments: list[str]) -> list[str]:
    """Return the commands, options and settings of *arguments* that do not exist."""
    command = get_command(app)
    words = iter(arguments)
    unknown, settings = [], []
    for word in words:
        if isinstance(command, TyperGroup) and not word.startswith("-"):
            if word not in command.commands:
                return [word]
            command = command.commands[word]
        elif word.startswith("--"):
            name, _, value = word.partition("=")
            if name not in {opt for parameter in command.params for opt in parameter.opts}:
                unknown.append(name)
            if name == "--set":
                settings.append(value or next(words))
    known = {f"{section}.{name}" for section, values in _sections().items() for name in values}
    return unknown + [each for each in settings if each.partition("=")[0] not in known]


@functools.cache
def _sections() -> dict[str, dict[str, object]]:
    sections: dict[str, dict[str, object]] = {}

    def add(name: str, values: dict[str, object]) -> None:
        sections[name] = values
        for inner, value in values.items():
            if isinstance(value, dict):
                add(f"{name}.{inner}", value)

    for settings in (load_settings(None, None), BridgeSettings()):
        for name, values in settings.model_dump().items():
            add(name, {**sections.get(name, {}), **values})
    return sections


def test_commands_in_pages_have_known_options_and_settings() -> None:
    commands = samserve_commands()

    assert len(commands) > 40
    assert [(page, words) for page, words in commands if unknown_in(words)] == []


def test_unknown_parts_of_a_command_are_noticed() -> None:
    assert unknown_in(["models", "all"]) == ["all"]
    assert unknown_in(["predict", "a.jpg", "--dot", "1,2"]) == ["--dot"]
    assert unknown_in(["serve", "--set", "store.ttl_s=1"]) == ["store.ttl_s=1"]


def block_with(text: str) -> str:
    """Return the shell block of the README that contains *text*."""
    blocks = re.findall(r"(?ms)^```sh\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"))
    (block,) = [block for block in blocks if text in block]
    return block


@asynccontextmanager
async def serving(command: str, folder: Path, environment: dict[str, str]) -> AsyncIterator[None]:
    """Run the README's `samserve serve` while the block runs, once it is ready."""
    process = await asyncio.create_subprocess_shell(
        f"exec {command}", cwd=folder, env=environment, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            lines = [await process.stderr.readline()]
            while b"serving" not in lines[-1]:
                assert lines[-1], b"".join(lines).decode()
                lines.append(await process.stderr.readline())
        yield
    finally:
        process.terminate()
        await process.communicate()


@pytest.mark.slow
async def test_commands_of_the_readme_run(tmp_path: Path) -> None:
    """A new user's commands, in the README's order, on ports of this test."""
    (tmp_path / "photos").mkdir()
    for path in (tmp_path / "photo.jpg", tmp_path / "photos" / "photo.jpg"):
        path.write_bytes(sample_images.encode(sample_images.noise(480, 640), "JPEG"))
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    issued.private_key_pem.write_to_path(tmp_path / "tls.key")
    port, admin_port = free_ports(2)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
        "HOME": str(tmp_path),
        # It is the commands that are tested here, not the model.
        "SAMSERVE_ENGINE__KIND": "fake",
        "SAMSERVE_SERVER__PORT": str(port),
        "SAMSERVE_SERVER__ADMIN_PORT": str(admin_port),
    }

    async def run(script: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(shutil.which("bash") or "bash", "-euo", "pipefail", "-c"),
            script.replace(":50051", f":{port}"),
            cwd=tmp_path,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, f"{script}\n{err.decode()}"
        return out.decode()

    serve, *commands = block_with("samserve automask").splitlines()[1:]
    async with serving(serve, tmp_path, environment):
        for line in commands[:-1]:
            await run(line)
        listed = await run(block_with("--list-methods"))
    key, tls = block_with("samserve keys create").split("samserve serve", 1)
    first, _, then = tls.partition("auth.api_keys_file=keys.toml\n")
    await run(key)
    secured = f"samserve serve{first}auth.api_keys_file=keys.toml".replace("0.0.0.0", "127.0.0.1")
    async with serving(secured.replace("\\\n", " "), tmp_path, environment):
        answered = await run(then)

    assert "samserve.v1.SegmentationService/Predict" in listed
    assert {"overlay.png", "out.json", "all.png", "all.json"} <= set(os.listdir(tmp_path))
    assert '"cocoRle"' in answered
