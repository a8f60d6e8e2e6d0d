"""The life of a pod: init containers in turn, sidecars, the others, and the end of them all."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from harness.errors import HarnessError
from harness.pod.containers import Container, Triton, container
from harness.pod.volumes import Volumes, World, ports_of
from harness.program import HOST
from harness.triton.ports import free_ports

_LOG_TAIL = 2000
# The kubelet would try for ever.
_READY_TRIES = 60
# Where a spec says nothing.
_GRACE_S = 30.0


class Pod:
    """Runs a pod's spec; ``async with`` starts it and ends it by force.

    Sidecars are init containers that restart always: the next container starts once they have, and
    they are told to end when the others have ended.  Nothing is restarted here: a container that
    ends is an error.
    """

    def __init__(self, spec: Mapping[str, Any], world: World, *, host: str = HOST) -> None:
        """Describe it; *host* is its address, of loopback, where the kubelet's probes ask."""
        self._host = host
        self._spec = spec
        self._world = world
        self._ports: dict[int, int] = {}
        self._sidecars: list[Container] = []
        self._main: list[Container] = []
        self._folder: Path | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    def port(self, port: int) -> int:
        """Where a port of the pod is."""
        return self._ports[port]

    @property
    def grace_s(self) -> float:
        """Time to end in."""
        return float(self._spec.get("terminationGracePeriodSeconds", _GRACE_S))

    async def start(self) -> None:
        """Start all containers; return when the pod is ready."""
        self._folder = Path(tempfile.mkdtemp(prefix="samserve-pod-"))
        ports = ports_of(self._spec)
        self._ports = dict(zip(ports, free_ports(len(ports)), strict=True))
        volumes = Volumes(self._spec["volumes"], self._world, self._folder, self._ports)
        facts = {"metadata.uid": str(uuid.uuid4()), "status.podIP": self._host}

        def made(spec: Mapping[str, Any]) -> Container:
            assert self._folder is not None
            return container(spec, volumes, self._folder, facts)

        for spec in self._spec.get("initContainers", []):
            one = made(spec)
            if spec.get("restartPolicy") == "Always":
                self._sidecars.append(one)
                await self._started(one)
            else:
                await self._completed(one)
        self._main = [made(spec) for spec in self._spec["containers"]]
        for one in self._main:
            await self._started(one)
        for one in self._main:
            await self._passes(one, "readinessProbe", tries=_READY_TRIES)

    async def completed(self) -> str:
        """Wait until its containers have done their work; give what they have said."""
        for one in self._main:
            status = await one.ended()
            if status:
                raise HarnessError(f"{one.name} ended with {status}:\n{self._tail(one)}")
        return "".join(one.log.read_text() for one in self._main)

    async def terminate(self) -> float:
        """End it as the kubelet does, and give the seconds that it took.

        Raises `HarnessError` if it took more than its grace period, or a container failed.
        """
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.grace_s):
                await self._end(self._main)
                await self._end(self._sidecars)
        except TimeoutError:
            alive = [each for each in (*self._main, *self._sidecars) if each.alive]
            names = ", ".join(each.name for each in alive)
            raise HarnessError(f"after {self.grace_s:g} s there is still {names}") from None
        return time.monotonic() - began

    async def kill(self) -> None:
        """End what is left, and remove its files."""
        for one in (*self._main, *self._sidecars):
            await one.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def execute(self, command: list[str]) -> tuple[int, str]:
        """Run a command in its main container; return its exit status and what it has said."""
        (main,) = self._main
        if isinstance(main, Triton):
            raise HarnessError(f"{main.name} is Triton's: the harness has no image of it")
        return await main.execute(command)

    def logs(self) -> dict[str, str]:
        """Return what each container has said."""
        return {each.name: each.log.read_text() for each in (*self._main, *self._sidecars)}

    async def _end(self, containers: list[Container]) -> None:
        for one in containers:
            one.terminate()
        for one in containers:
            status = await one.ended()
            if status:
                raise HarnessError(f"{one.name} ended with {status}:\n{self._tail(one)}")

    async def _started(self, one: Container) -> None:
        await one.start()
        await self._passes(one, "startupProbe")

    async def _completed(self, one: Container) -> None:
        await one.start()
        status = await one.ended()
        if status:
            raise HarnessError(f"{one.name} ended with {status}:\n{self._tail(one)}")

    async def _passes(self, one: Container, kind: str, tries: int = 0) -> None:
        probe = one.probe(kind, self._host)
        if probe is None:
            return
        try:
            await probe.passed(lambda: one.alive, tries=tries)
        except HarnessError as error:
            raise HarnessError(f"{one.name}: {error}\n{self._tail(one)}") from None

    def _tail(self, one: Container) -> str:
        return one.log.read_text()[-_LOG_TAIL:] if one.log.exists() else ""
