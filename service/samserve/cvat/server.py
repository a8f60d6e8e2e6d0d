"""The gateway that CVAT's functions call, and images in a form that it takes."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc
from cvat_sdk.auto_annotation import BadFunctionError

from samserve.client import Overloaded, SamserveClientError, SyncClient, Unavailable

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")

# Modes that PNG has; others are converted to RGB.
_KEPT_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
# About 4 times as fast as the default level, for files that are a fifth larger.
_COMPRESS_LEVEL = 1
_RETRY_S = 1.0


def client_of(
    target: str,
    *,
    token_file: str = "",
    tls: bool = False,
    ca_file: str = "",
    server_name: str = "",
    plaintext: bool = False,
) -> SyncClient:
    """Return a client of a gateway; the parameters are those of ``cvat-cli -p``.

    The file at *token_file* has the API key or token, and is read for each call, as it may expire;
    the command line would show a token to other users.  *tls* verifies the certificate with those
    of the system, or with those in *ca_file*; *server_name* is the name in it, if *target* has
    another one.  *plaintext* allows a token without TLS on a trusted network.
    """
    credentials = None
    if tls or ca_file:
        roots = Path(ca_file).read_bytes() if ca_file else None
        credentials = grpc.ssl_channel_credentials(root_certificates=roots)
    return SyncClient(
        target,
        credentials=credentials,
        server_name=server_name,
        token=(lambda: Path(token_file).read_text("utf-8")) if token_file else "",
        plaintext=plaintext,
    )


class Server:
    """A gateway, connected to by the first call: CVAT also loads functions in processes that never
    call them.

    Calls are repeated for *retry_s* while the gateway is unavailable or has too much to do.
    """

    def __init__(self, connect: Callable[[], SyncClient], retry_s: float) -> None:
        self._connect = connect
        # Checks the parameters now.
        self._client = connect()
        self._open = False
        self._retry_s = retry_s

    def call(self, method: Callable[[SyncClient], T]) -> T:
        """Call the gateway.

        Raises `BadFunctionError` for an error of the gateway: of all exceptions of a function,
        CVAT shows only the text of these to the user.
        """
        end = time.monotonic() + self._retry_s
        while True:
            try:
                return method(self._opened())
            except (Unavailable, Overloaded) as error:
                if isinstance(error, Unavailable):
                    self._drop()
                delay = _RETRY_S if error.retry_after_s is None else error.retry_after_s
                if time.monotonic() + delay > end:
                    raise shown(error) from None
                time.sleep(delay)
            except SamserveClientError as error:
                raise shown(error) from None
            except OSError as error:
                raise BadFunctionError(f"samserve: {error.strerror}") from error

    def _opened(self) -> SyncClient:
        if not self._open:
            self._client.__enter__()
            self._open = True
        return self._client

    def _drop(self) -> None:
        """Close the connection: after failures, gRPC waits before it connects again."""
        self._client.__exit__(None, None, None)
        self._client, self._open = self._connect(), False


def shown(error: SamserveClientError) -> BadFunctionError:
    """Return the error that CVAT shows, with the id of the request in the gateway's log."""
    number = f" (request id {error.request_id})" if error.request_id else ""
    return BadFunctionError(f"samserve: {error.message}{number}")


def to_png(image: Image.Image) -> bytes:
    """Return the pixels of an image as a PNG file, without metadata such as its orientation.

    The file of equal pixels is equal, so that the gateway knows the hash of a frame that any agent
    has sent before.
    """
    if image.mode not in _KEPT_MODES:
        image = image.convert("RGB")
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=_COMPRESS_LEVEL, exif=b"", icc_profile=None)
    return file.getvalue()
