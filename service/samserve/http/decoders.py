"""Downloads of mask decoders, by the SHA-256 of their files."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from samserve.calls.methods import DOWNLOAD_DECODER
from samserve.calls.pipeline import Call, CallPipeline
from samserve.errors import DecoderNotFound
from samserve.http.failures import send_failure, unsupported
from samserve.http.request import HttpRequest
from samserve.http.response import HttpResponse
from samserve.http.transports import HttpTransport
from samserve.models.digest import DATA_FILE
from samserve.types import ModelInfo

FOLDER = "/decoders/"

# SPDX identifiers of licences that let anyone pass the file on, in lower case.
PERMISSIVE = frozenset(
    ("0bsd", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "isc", "mit", "unlicense")
)
_CHUNK_BYTES = 1 << 20
# How long a download may take; the client accepts each chunk within server.send_timeout_s.
_DEADLINE_S = 900.0


@dataclass(frozen=True, slots=True)
class DecoderFile:
    """An open file, and its state when its digest was computed."""

    descriptor: int
    digest: str
    state: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        return self.state[0]

    def is_unchanged(self) -> bool:
        """Return whether the file still has the content of the digest."""
        return _state(self.descriptor) == self.state


class DecoderFiles:
    """The decoders that may be downloaded, until the block ends."""

    def __init__(
        self,
        models: Callable[[], Mapping[str, ModelInfo]],
        files: Callable[[], Mapping[str, Path]],
        allowed: Iterable[str],
    ) -> None:
        """Open the *files*, by model, of models with a permissive licence and of *allowed* ones."""
        self._stack = ExitStack()
        self._named = frozenset(allowed)
        self._files: dict[str, DecoderFile] = {}
        self._opened: dict[Path, DecoderFile] = {}
        self.digests: dict[str, str] = {}
        """The digests by model."""
        self._models, self._paths = models, files
        self.update()

    def update(self) -> None:
        """Open the files of versions that are in service since the last call.

        Those of earlier versions stay available: a page that has listed the models before may still
        download them.
        """
        paths = self._paths()
        for info in self._models().values():
            path = paths.get(info.name)
            permitted = info.card.license.lower() in PERMISSIVE or info.name in self._named
            # External weights are a second file, which a digest of the first does not cover.
            if path is None or not permitted or path.with_name(DATA_FILE).exists():
                self.digests.pop(info.name, None)
                continue
            file = self._opened.get(path) or self._open(path)
            self._opened[path] = self._files[file.digest] = file
            self.digests[info.name] = file.digest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def find(self, digest: str) -> DecoderFile:
        """Return the file with this digest.  Raises `DecoderNotFound`."""
        file = self._files.get(digest)
        if file is None or not file.is_unchanged():
            raise DecoderNotFound(
                "no decoder with this digest may be downloaded; ListModels has those that may be",
                metadata={"decoder_sha256": digest[:64]},
            )
        return file

    def _open(self, path: Path) -> DecoderFile:
        opened = self._stack.enter_context(path.open("rb"))
        state = _state(opened.fileno())
        return DecoderFile(
            opened.fileno(), hashlib.file_digest(opened, "sha256").hexdigest(), state
        )


def _state(descriptor: int) -> tuple[int, ...]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns, status.st_ino


class DecoderEndpoint:
    """``GET /decoders/{sha256}``: a call in the pipeline of all calls."""

    def __init__(self, files: DecoderFiles, pipeline: CallPipeline) -> None:
        self._files = files
        self._pipeline = pipeline

    async def __call__(self, request: HttpRequest, response: HttpResponse) -> None:
        """Serve one download."""
        if request.method != "GET":
            failure = unsupported("decoders are downloaded with GET")
            await send_failure(response, failure, 405, (b"allow", b"GET"))
            return
        transport = _Download(request, response, remaining_s=_DEADLINE_S)
        digest = request.path.removeprefix(FOLDER)
        known = request.header("if-none-match")

        async def serve(call: Call) -> None:
            file = self._files.find(digest)
            transport.describe(file)
            if known in ("*", f'"{digest}"'):
                await response.empty(304, transport.caching)
                return
            for offset in range(0, file.nbytes, _CHUNK_BYTES):
                data = await asyncio.to_thread(os.pread, file.descriptor, _CHUNK_BYTES, offset)
                if not file.is_unchanged():
                    raise RuntimeError("the decoder was replaced during its download")
                await call.send(data, last=False)
            await transport.finish()

        await self._pipeline.run(DOWNLOAD_DECODER, transport, serve)


class _Download(HttpTransport):
    """The response is the file."""

    def describe(self, file: DecoderFile) -> None:
        """Set what the headers say about the file."""
        self.caching = [
            (b"etag", f'"{file.digest}"'.encode("ascii")),
            # The content of a digest never changes; only this caller may have it.
            (b"cache-control", b"private, max-age=31536000, immutable"),
        ]
        self._headers = [*self.caching, (b"content-length", b"%d" % file.nbytes)]

    async def write(self, data: bytes) -> None:
        """See `Transport.write`."""
        if not self._response.started:
            await self._response.begin(200, b"application/octet-stream", self._headers)
        await self._response.part(data)

    async def finish(self) -> None:
        """See `HttpTransport.finish`."""
        await self._response.end(b"")
