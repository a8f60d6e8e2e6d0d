"""The life cycle of a pod: init containers in sequence, sidecars, main containers, termination."""

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
from harness.pod.containers import Container, Triton, create_container
from harness.pod.volumes import References, Volumes, ports_of
from harness.program import HOST
from harness.triton.ports import free_ports

_LOG_TAIL = 2000
# The kubelet retries a readiness probe without limit.
_READY_TRIES = 60
# The default of Kubernetes.
_GRACE_S = 30.0


class Pod:
    """Runs a pod spec; ``async with`` starts it and kills it at the end.

    Sidecars are init containers with ``restartPolicy: Always``: the next container starts when
    their startup probe has succeeded, and they are terminated after the main containers. Nothing is
    restarted: a container that ends early is an error.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        references: References,
        *,
        host: str = HOST,
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        """Configure the pod; *host* is its address, on loopback, which the probes use."""
        self._host = host
        self._annotations = annotations or {}
        self._spec = spec
        self._references = references
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
        """Return the local port of a container port."""
        return self._ports[port]

    @property
    def grace_s(self) -> float:
        """The termination grace period."""
        return float(self._spec.get("terminationGracePeriodSeconds", _GRACE_S))

    async def start(self) -> None:
        """Start all containers; return when the pod is ready."""
        self._folder = Path(tempfile.mkdtemp(prefix="samserve-pod-"))
        ports = ports_of(self._spec)
        self._ports = dict(zip(ports, free_ports(len(ports)), strict=True))
        volumes = Volumes(self._spec["volumes"], self._references, self._folder, self._ports)
        pod_fields = {
            "metadata.uid": str(uuid.uuid4()),
            "status.podIP": self._host,
            **{f"metadata.annotations['{key}']": text for key, text in self._annotations.items()},
        }

        def create(spec: Mapping[str, Any]) -> Container:
            assert self._folder is not None
            return create_container(spec, volumes, self._folder, pod_fields)

        for spec in self._spec.get("initContainers", []):
            container = create(spec)
            if spec.get("restartPolicy") == "Always":
                self._sidecars.append(container)
                await self._start(container)
            else:
                await self._run_to_completion(container)
        self._main = [create(spec) for spec in self._spec["containers"]]
        for container in self._main:
            await self._start(container)
        for container in self._main:
            await self._wait_for_probe(container, "readinessProbe", tries=_READY_TRIES)

    async def wait_completed(self) -> str:
        """Wait until the main containers have succeeded; return their output."""
        for container in self._main:
            await self._wait_succeeded(container)
        return "".join(container.log.read_text() for container in self._main)

    async def terminate(self) -> float:
        """Terminate the pod as the kubelet does; return the seconds that this took.

        Raises `HarnessError` if it exceeded the grace period, or if a container failed.
        """
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.grace_s):
                await self._terminate(self._main)
                await self._terminate(self._sidecars)
        except TimeoutError:
            alive = [each for each in (*self._main, *self._sidecars) if each.alive]
            names = ", ".join(each.name for each in alive)
            raise HarnessError(f"still running after {self.grace_s:g} s: {names}") from None
        return time.monotonic() - began

    async def kill(self) -> None:
        """Kill the remaining processes and remove the pod's files."""
        for container in (*self._main, *self._sidecars):
            await container.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def execute(self, command: list[str]) -> tuple[int, str]:
        """Run a command in the main container; return its exit status and output."""
        (main,) = self._main
        if isinstance(main, Triton):
            raise HarnessError(f"{main.name} runs Triton, whose image the harness does not have")
        return await main.execute(command)

    def logs(self) -> dict[str, str]:
        """Return the output of each container."""
        return {each.name: each.log.read_text() for each in (*self._main, *self._sidecars)}

    async def _terminate(self, containers: list[Container]) -> None:
        for container in containers:
            container.terminate()
        for container in containers:
            await self._wait_succeeded(container)

    async def _start(self, container: Container) -> None:
        await container.start()
        await self._wait_for_probe(container, "startupProbe")

    async def _run_to_completion(self, container: Container) -> None:
        await container.start()
        await self._wait_succeeded(container)

    async def _wait_succeeded(self, container: Container) -> None:
        status = await container.wait()
        if status:
            tail = self._log_tail(container)
            raise HarnessError(f"{container.name} exited with status {status}:\n{tail}")

    async def _wait_for_probe(self, container: Container, kind: str, tries: int = 0) -> None:
        probe = container.probe(kind, self._host)
        if probe is None:
            return
        try:
            await probe.wait(lambda: container.alive, tries=tries)
        except HarnessError as error:
            tail = self._log_tail(container)
            raise HarnessError(f"{container.name}: {error}\n{tail}") from None

    def _log_tail(self, container: Container) -> str:
        return container.log.read_text()[-_LOG_TAIL:] if container.log.exists() else ""
