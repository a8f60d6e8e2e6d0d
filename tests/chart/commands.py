"""Commands of the documentation that run against a cluster or in its containers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "helm" / "samserve").glob("*.md"),
    *(ROOT / "examples").rglob("*.md"),
    ROOT / "README.md",
)
_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`((?:kubectl|helm|docker) [^`]+)`")
# Separators between the commands of a line.
_SEPARATORS = re.compile(r"\s*(?:\||&&|;|&(?=\s|$))\s*(?=(?:[^']*'[^']*')*[^']*$)")

NOT_RUN = {
    "kubectl": "requires the API server of a cluster",
    "helm": "changes a cluster; its rendered objects are tested",
    "docker": "requires a container runtime",
}
"""Programs whose commands no test runs, and the reason; see `Command.exec_arguments` for others."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command and the page that contains it."""

    page: str
    text: str

    @property
    def exec_arguments(self) -> list[str] | None:
        """The command that `kubectl exec` runs in a container; None for other commands."""
        words = shlex.split(self.text)
        if words[0] != "kubectl" or "exec" not in words:
            return None
        return words[words.index("--") + 1 :]


def commands() -> list[Command]:
    """Return the commands of kubectl, helm and docker, each once per page."""
    found = {
        Command(page.name, command): None
        for page in sorted(PAGES)
        for command in commands_in(page.read_text(encoding="utf-8"))
        if command.partition(" ")[0] in NOT_RUN
    }
    return list(found)


def commands_in(text: str) -> Iterator[str]:
    """Yield each command of the shell blocks of a page, and the inline ones."""
    for block in _BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            yield from _SEPARATORS.split(re.sub(r"(^|\s+)#\s.*", "", line))
    yield from (match for match in _INLINE.findall(text) if "`" not in match)
