"""One TLS context for all fetchers: to load the authorities of the system takes most of a test."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest
from samserve.bridge.fetching import FetchSettings, fetcher


@pytest.fixture(autouse=True, scope="module")
def _shared_context() -> Iterator[None]:
    make, shared = fetcher._tls, fetcher._tls(FetchSettings())

    def context_of(settings: FetchSettings) -> ssl.SSLContext:
        return shared if settings.ca_file is None else make(settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetcher, "_tls", context_of)
        yield
