"""The guarded fetcher: images by URL, without access to internal addresses."""

from samserve.bridge.fetching.errors import (
    DownloadFailed,
    DownloadNotImage,
    DownloadRefused,
    DownloadTimeout,
    DownloadTooLarge,
    UrlNotAllowed,
)
from samserve.bridge.fetching.fetcher import Fetched, Fetcher
from samserve.bridge.fetching.settings import FetchSettings
from samserve.bridge.fetching.urls import TrustedOrigin

__all__ = [
    "DownloadFailed",
    "DownloadNotImage",
    "DownloadRefused",
    "DownloadTimeout",
    "DownloadTooLarge",
    "FetchSettings",
    "Fetched",
    "Fetcher",
    "TrustedOrigin",
    "UrlNotAllowed",
]
