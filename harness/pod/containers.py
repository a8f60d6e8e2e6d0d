"""Containers as processes."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from harness.errors import HarnessError
from harness.pod import images
from harness.pod.probes import Probe
from harness.pod.volumes import Volumes
from harness.program import Program
from harness.triton.server import TritonServer

_REFERENCE = re.compile(r"\$\(([A-Z_]+)\)")


class Container:
    """A container of a pod; *facts* are what its environment may ask of the pod."""

    def __init__(
        self, spec: Mapping[str, Any], volumes: Volumes, folder: Path, facts: Mapping[str, str]
    ) -> None:
        self.name: str = spec["name"]
        self.log = folder / f"{self.name}.log"
        self._program: Program | None = None
        self._spec = spec
        self._volumes = volumes
        self._mounts: list[Mapping[str, Any]] = spec.get("volumeMounts", [])
        self._environment = {
            each["name"]: (
                volumes.text(each["value"], self._mounts)
                if "value" in each
                else facts[each["valueFrom"]["fieldRef"]["fieldPath"]]
            )
            for each in spec.get("env", [])
        }

    def probe(self, kind: str, host: str) -> Probe | None:
        """Return its probe of a kind, ``startupProbe`` for instance, of a pod at *host*."""
        if kind not in self._spec:
            return None
        name = self._spec[kind]["httpGet"]["port"]
        (port,) = (p["containerPort"] for p in self._spec["ports"] if p["name"] == name)
        return Probe(self._spec[kind], self._volumes.port(port), host)

    def _arguments(self, given: list[str]) -> list[str]:
        expanded = (_REFERENCE.sub(lambda m: self._environment[m[1]], each) for each in given)
        return [self._volumes.text(each, self._mounts) for each in expanded]

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._program is not None and self._program.alive

    async def start(self) -> None:
        """Start it, without waiting for more."""
        self._program = self._make()
        await asyncio.to_thread(self._program.launch)

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self._running().terminate()

    async def ended(self) -> int:
        """Wait until it has ended, and return its exit status."""
        return await asyncio.to_thread(self._running().wait)

    async def kill(self) -> None:
        """End it by force, and remove what it leaves behind."""
        if self._program is not None:
            await asyncio.to_thread(self._program.kill)

    async def execute(self, command: list[str]) -> tuple[int, str]:
        """Run a command in it, as `kubectl exec` does; return its exit status and what it says."""
        process = await asyncio.create_subprocess_exec(
            *images.program(self._arguments(command)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"PATH": os.defpath, **self._environment},
        )
        said, _ = await process.communicate()
        return await process.wait(), said.decode()

    def _make(self) -> Program:
        for mount in self._mounts:
            config = Path(self._volumes.path(mount["mountPath"], self._mounts)) / "config.toml"
            if mount["name"] == "config":
                self._volumes.translate_config(config, self._mounts)
        given = [*self._spec.get("command", []), *self._spec.get("args", [])]
        return _Command(images.program(self._arguments(given)), self._environment, self.log)

    def _running(self) -> Program:
        if self._program is None:
            raise HarnessError(f"{self.name} was not started")
        return self._program


class _Command(Program):
    """A command of the gateway's image."""

    _name: ClassVar[str] = "container"

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        super().__init__(port=0, log=log)
        self._words = command
        self._env = {"PATH": os.defpath, **environment}

    def _command(self, folder: Path) -> list[str]:
        return self._words


class Triton(Container):
    """The harness's tritonserver, with the arguments of the production image."""

    def _make(self) -> Program:
        command = self._arguments([*self._spec["command"], *self._spec["args"]])
        given = images.given_to_triton(command, self._environment)
        arguments = images.triton_arguments(given)
        options = dict(each.removeprefix("--").split("=", 1) for each in arguments)
        return TritonServer(
            Path(options["model-repository"]),
            log=self.log,
            grpc_port=int(options["grpc-port"]),
            http_port=int(options["http-port"]),
            metrics_port=int(options["metrics-port"]),
            extra_args=arguments,
            env=self._environment,
        )


def container(
    spec: Mapping[str, Any], volumes: Volumes, folder: Path, facts: Mapping[str, str]
) -> Container:
    """Make the container that *spec* describes."""
    starts_triton = images.starts_triton([*spec["command"], *spec.get("args", [])])
    kind = Triton if starts_triton else Container
    return kind(spec, volumes, folder, facts)
