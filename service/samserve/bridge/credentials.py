"""Who calls: the token of a tool's request, and the credential of samserve that belongs to it."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import SecretStr, StringConstraints, field_validator

from samserve.bridge.caller import Caller
from samserve.bridge.settings import TokenSettings
from samserve.errors import Misconfigured, Unauthenticated
from samserve.http.request import HttpRequest
from samserve.security.strict import Strict, read_toml
from samserve.system.reloading import ReloadableFile

MAX_BYTES = 8 << 20

_SCHEMES = ("bearer", "token")
_Printable = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,8192}$")]


class TokenEntry(Strict):
    """A token of a tool, as its SHA-256 in hexadecimal digits, and the credential for it."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    credential: SecretStr
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.@:-]{1,64}$")]

    @field_validator("credential")
    @classmethod
    def _check_credential(cls, secret: SecretStr) -> SecretStr:
        text = secret.get_secret_value()
        if not (text and text.isascii() and text.isprintable() and " " not in text):
            raise ValueError("must be one API key or token")
        return secret


class _TokenFile(Strict):
    tokens: tuple[TokenEntry, ...] = ()


def parse_tokens(data: bytes) -> dict[str, TokenEntry]:
    """Return the entries of a tokens file by hash.  Raises `Misconfigured`."""
    entries = read_toml("tokens file", data, _TokenFile).tokens
    found = {entry.sha256: entry for entry in entries}
    if len(found) < len(entries):
        raise Misconfigured("tokens file: a token is listed twice")
    return found


def parse_credential(data: bytes) -> str:
    """Return the credential in a file.  Raises `Misconfigured`."""
    text = data.decode("utf-8", "replace").strip()
    if not (text and text.isascii() and text.isprintable()):
        raise Misconfigured("tokens.credential_file: contains no API key or token")
    return text


class Credentials:
    """Finds the caller of a request; ``files`` are reloaded when they change."""

    def __init__(self, settings: TokenSettings) -> None:
        self._tokens, self._default = None, None
        if settings.file is not None:
            self._tokens = ReloadableFile("tokens", [settings.file], parse_tokens, MAX_BYTES)
        if settings.credential_file is not None:
            self._default = ReloadableFile(
                "credential", [settings.credential_file], parse_credential
            )
        both = (self._tokens, self._default)
        self.files: tuple[ReloadableFile[Any], ...] = tuple(each for each in both if each)

    def find(self, request: HttpRequest, request_id: str) -> Caller:
        """Return the caller.  Raises `Unauthenticated`, whose text does not repeat the token."""
        given = list(tokens_of(request))
        if not given:
            if self._default is not None:
                return Caller(self._default.value, request_id)
            if self._tokens is not None:
                raise Unauthenticated(
                    "a token is required; docs/tools.md describes where to set it"
                )
            return Caller("", request_id)
        if self._tokens is None:
            return Caller(given[0], request_id)
        for token in given:
            entry = self._tokens.value.get(hashlib.sha256(token.encode()).hexdigest())
            if entry is not None:
                return Caller(entry.credential.get_secret_value(), request_id, entry.name)
        raise Unauthenticated("the token is unknown")


def tokens_of(request: HttpRequest) -> Iterator[str]:
    """Yield the tokens that a request may mean, the likeliest first; none if it has no token.

    ``Authorization: Basic`` means its password, user name and password with a colon between them,
    or its user name if the password is empty; tools that take a token in place of a name and a
    password differ in this.  ``Bearer`` and ``Token`` mean what follows, and so does the header
    ``Token``.  Raises `Unauthenticated` for another scheme.
    """
    text = request.header("authorization")
    if not text:
        yield from _sendable(request.header("token"))
        return
    scheme, _, rest = text.partition(" ")
    if scheme.lower() in _SCHEMES:
        yield from _sendable(rest.strip())
    elif scheme.lower() == "basic":
        yield from _of_basic(rest.strip())
    else:
        raise Unauthenticated("the authorization header must be Basic, Bearer or Token")


def _of_basic(text: str) -> Iterator[str]:
    try:
        pair = base64.b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise Unauthenticated("the authorization header is not valid") from None
    user, _, password = pair.partition(":")
    yield from _sendable(password or user)
    if password and user:
        yield from _sendable(pair)


def _sendable(token: str) -> Iterator[str]:
    """Yield a token unless it is empty.  Raises `Unauthenticated` if no gateway can accept it."""
    if not token:
        return
    if not (token.isascii() and token.isprintable()):
        raise Unauthenticated("the token has characters that no token has")
    yield token
