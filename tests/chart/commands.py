"""Commands that documents and notes tell people to run in a cluster, and in its containers."""

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
# Where one command of a line ends and the next one begins.
_ENDS = re.compile(r"\s*(?:\||&&|;|&(?=\s|$))\s*(?=(?:[^']*'[^']*')*[^']*$)")

NOT_RUN = {
    "kubectl": "asks the API server of a cluster",
    "helm": "changes a cluster; what it renders is tested",
    "docker": "takes a container runtime",
}
"""Programs whose commands no test runs, and why; but see `Command.inside`."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command and the page that has it; ``inside`` is what is run in a container, if it is."""

    page: str
    text: str

    @property
    def inside(self) -> list[str] | None:
        """Return what `kubectl exec` runs."""
        words = shlex.split(self.text)
        if words[0] != "kubectl" or "exec" not in words:
            return None
        return words[words.index("--") + 1 :]


def commands() -> list[Command]:
    """Return all commands of programs that are about a cluster, each once for a page."""
    found = {
        Command(page.name, command): None
        for page in sorted(PAGES)
        for command in _of(page.read_text(encoding="utf-8"))
        if command.partition(" ")[0] in NOT_RUN
    }
    return list(found)


def _of(text: str) -> Iterator[str]:
    for block in _BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            yield from _ENDS.split(re.sub(r"(^|\s+)#\s.*", "", line))
    yield from (match for match in _INLINE.findall(text) if "`" not in match)
