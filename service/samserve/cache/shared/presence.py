"""The known state of the shared tier for each embedding in the local tier."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from samserve.errors import CacheUnavailable
from samserve.types import EmbeddingKey

# An embedding that the shared tier has lost is rewritten at most once in this time: where the
# shared tier is too small, rewriting would only evict other embeddings.
_REWRITE_INTERVAL_S = 5.0


@dataclass(slots=True)
class _Record:
    present: bool
    checked_at: float
    confirmed_at: float
    rewritten_at: float


class SharedPresence:
    """Remembers, for each embedding in the local tier, whether the shared tier last had it.

    *now* is monotonic, in seconds.  A result is valid for *revalidate_interval_s*, and during an
    outage for *stale_if_error_s*.
    """

    def __init__(
        self,
        revalidate_interval_s: float,
        stale_if_error_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.now = now
        self._revalidate_interval_s = revalidate_interval_s
        self._stale_if_error_s = stale_if_error_s
        self._records: dict[EmbeddingKey, _Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def record(self, key: EmbeddingKey, checked_at: float, *, present: bool) -> None:
        """Store the result of a check; *checked_at* is when its request was sent."""
        record = self._records.get(key)
        if record is None:
            self._records[key] = _Record(
                present, checked_at, checked_at, checked_at - _REWRITE_INTERVAL_S
            )
        elif checked_at >= record.checked_at:
            record.present, record.checked_at = present, checked_at
            record.confirmed_at = max(record.confirmed_at, checked_at)

    def known(self, key: EmbeddingKey) -> bool | None:
        """Return whether the shared tier has it, None if that must be checked again."""
        record = self._records.get(key)
        if record is None or self.now() - record.checked_at > self._revalidate_interval_s:
            return None
        return record.present

    def require_recent_confirmation(self, key: EmbeddingKey, *, image_sent: bool) -> None:
        """Allow the use of an embedding during an outage of the shared tier.

        With *image_sent* it may be used whether it was deleted or not, which counts as a
        confirmation.  Raises `CacheUnavailable` if the last confirmation is too old, so that the
        embedding may have been deleted.
        """
        record = self._records.get(key)
        if image_sent:
            if record is not None:
                record.confirmed_at = self.now()
        elif record is None or self.now() - record.confirmed_at > self._stale_if_error_s:
            raise CacheUnavailable(
                "the shared cache is unavailable, and it is unknown whether the embedding was "
                "deleted; send the image, or try again"
            )

    def claim_rewrite(self, key: EmbeddingKey) -> bool:
        """Return whether the embedding may be rewritten now; if so, the interval restarts."""
        record = self._records.get(key)
        if record is None or self.now() - record.rewritten_at < _REWRITE_INTERVAL_S:
            return False
        record.rewritten_at = self.now()
        return True

    def invalidate_all(self) -> None:
        """Require a check of every embedding before its next use."""
        for record in self._records.values():
            record.checked_at = -math.inf

    def remove(self, key: EmbeddingKey) -> None:
        """Remove the record of an embedding that is not in the local tier any more."""
        self._records.pop(key, None)
