"""The client of `examples/node`, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from samserve.app import Running

from tests.examples.programs import FOLDER, program
from tests.support.waiting import TIMEOUT_S

_LINE_LIMIT_BYTES = 256 << 20


class NodeClient:
    """Runs scenarios in Node.js, each in another process."""

    sections: ClassVar[dict[str, dict[str, Any]]] = {}
    """The settings that a server needs for this client."""

    def target(self, service: Running, *, tls: bool = False) -> str:
        """Return the address of a server for this client; with *tls* it names the host."""
        return service.address.replace("127.0.0.1", "localhost") if tls else service.address

    @asynccontextmanager
    async def scenario(
        self, name: str, target: str, options: dict[str, Any] | None = None, **args: Any
    ) -> AsyncIterator[Any]:
        """Run a scenario and yield its result; the client is open while the block runs."""
        process = await asyncio.create_subprocess_exec(
            program("node"),
            str(FOLDER / "run_scenario.mjs"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=_LINE_LIMIT_BYTES,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            request = {"name": name, "target": target, "options": options or {}, "args": args}
            process.stdin.write(json.dumps(request).encode() + b"\n")
            line = await process.stdout.readline()
            assert line, "the scenario failed: its output has the reason"
            yield json.loads(line)
        finally:
            process.stdin.close()
            code = await asyncio.wait_for(process.wait(), TIMEOUT_S)
        assert code == 0
