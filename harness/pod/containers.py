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
    """A container of a pod; *pod_fields* are the values of its `fieldRef` variables."""

    def __init__(
        self, spec: Mapping[str, Any], volumes: Volumes, folder: Path, pod_fields: Mapping[str, str]
    ) -> None:
        self.name: str = spec["name"]
        self.log = folder / f"{self.name}.log"
        self._program: Program | None = None
        self._spec = spec
        self._volumes = volumes
        self._mounts: list[Mapping[str, Any]] = spec.get("volumeMounts", [])
        self._environment = {
            each["name"]: (
                volumes.translate(each["value"], self._mounts)
                if "value" in each
                else pod_fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
            )
            for each in spec.get("env", [])
        }

    def probe(self, kind: str, host: str) -> Probe | None:
        """Return its probe of a kind, such as ``startupProbe``; *host* is the pod's address."""
        if kind not in self._spec:
            return None
        name = self._spec[kind]["httpGet"]["port"]
        (port,) = (p["containerPort"] for p in self._spec["ports"] if p["name"] == name)
        return Probe(self._spec[kind], self._volumes.port(port), host)

    def _local_arguments(self, arguments: list[str]) -> list[str]:
        expanded = (_REFERENCE.sub(lambda m: self._environment[m[1]], each) for each in arguments)
        return [self._volumes.translate(each, self._mounts) for each in expanded]

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._program is not None and self._program.alive

    async def start(self) -> None:
        """Start the process, without waiting for its probes."""
        self._program = self._create_program()
        await asyncio.to_thread(self._program.launch)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._started_program().terminate()

    async def wait(self) -> int:
        """Wait until the process has ended, and return its exit status."""
        return await asyncio.to_thread(self._started_program().wait)

    async def kill(self) -> None:
        """Kill the process and remove its files."""
        if self._program is not None:
            await asyncio.to_thread(self._program.kill)

    async def execute(self, command: list[str]) -> tuple[int, str]:
        """Run a command as `kubectl exec` does; return its exit status and output."""
        process = await asyncio.create_subprocess_exec(
            *images.local_command(self._local_arguments(command)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"PATH": os.defpath, **self._environment},
        )
        output, _ = await process.communicate()
        return await process.wait(), output.decode()

    def _create_program(self) -> Program:
        for mount in self._mounts:
            if mount["name"] == "config":
                folder = Path(self._volumes.path(mount["mountPath"], self._mounts))
                (config,) = folder.glob("*.toml")
                self._volumes.translate_config(config, self._mounts)
        command = [*self._spec.get("command", []), *self._spec.get("args", [])]
        local = images.local_command(self._local_arguments(command))
        return _Command(local, self._environment, self.log)

    def _started_program(self) -> Program:
        if self._program is None:
            raise HarnessError(f"{self.name} was not started")
        return self._program


class _Command(Program):
    """A command of the gateway image."""

    _name: ClassVar[str] = "container"

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        super().__init__(port=0, log=log)
        self._words = command
        self._env = {"PATH": os.defpath, **environment}

    def _command(self, folder: Path) -> list[str]:
        return self._words


class Triton(Container):
    """The harness's tritonserver, with the arguments of the production image."""

    def _create_program(self) -> Program:
        command = self._local_arguments([*self._spec["command"], *self._spec["args"]])
        resolved = images.resolve_triton_args(command, self._environment)
        arguments = images.supported_triton_args(resolved)
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


def create_container(
    spec: Mapping[str, Any], volumes: Volumes, folder: Path, pod_fields: Mapping[str, str]
) -> Container:
    """Return the container that *spec* describes."""
    starts_triton = images.starts_triton([*spec["command"], *spec.get("args", [])])
    kind = Triton if starts_triton else Container
    return kind(spec, volumes, folder, pod_fields)
