"""What is known of the shared copies of the embeddings in memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from samserve.errors import StoreUnavailable
from samserve.types import EmbeddingKey

# An embedding that the shared cache has lost is written again no more often than that: where the
# cache is too small, writing would only drive out others.
_REWRITE_S = 5.0


@dataclass(slots=True)
class _Copy:
    present: bool
    checked_at: float
    confirmed_at: float
    rewritten_at: float


class SharedPresence:
    """Remembers, for each embedding that memory lists, whether others were last seen to find it.

    *now* is monotonic, in seconds; what was seen holds for *check_s*, and while nothing can be seen
    for *unconfirmed_s*.
    """

    def __init__(
        self, check_s: float, unconfirmed_s: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.now = now
        self._check_s = check_s
        self._unconfirmed_s = unconfirmed_s
        self._copies: dict[EmbeddingKey, _Copy] = {}

    def __len__(self) -> int:
        return len(self._copies)

    def note(self, key: EmbeddingKey, seen_at: float, *, present: bool) -> None:
        """Record what was seen; *seen_at* is when the question was sent."""
        copy = self._copies.get(key)
        if copy is None:
            self._copies[key] = _Copy(present, seen_at, seen_at, seen_at - _REWRITE_S)
        elif seen_at >= copy.checked_at:
            copy.present, copy.checked_at = present, seen_at
            copy.confirmed_at = max(copy.confirmed_at, seen_at)

    def fresh(self, key: EmbeddingKey) -> bool | None:
        """Return whether others find it, None if that has to be asked."""
        copy = self._copies.get(key)
        if copy is None or self.now() - copy.checked_at > self._check_s:
            return None
        return copy.present

    def use_unseen(self, key: EmbeddingKey, *, image_sent: bool) -> None:
        """Let it be used while nothing can be seen.

        With *image_sent* it may be used now whatever others have done, which counts as having been
        confirmed.  Raises `StoreUnavailable` if it was confirmed too long ago, so that it may have
        been deleted.
        """
        copy = self._copies.get(key)
        if image_sent:
            if copy is not None:
                copy.confirmed_at = self.now()
        elif copy is None or self.now() - copy.confirmed_at > self._unconfirmed_s:
            raise StoreUnavailable(
                "the shared cache cannot be asked whether the embedding was deleted; send the "
                "image, or try again"
            )

    def claim_rewrite(self, key: EmbeddingKey) -> bool:
        """Return whether it is time to write it again, which counts as having done so."""
        copy = self._copies.get(key)
        if copy is None or self.now() - copy.rewritten_at < _REWRITE_S:
            return False
        copy.rewritten_at = self.now()
        return True

    def invalidate_all(self) -> None:
        """Have every one checked again before it is used."""
        for copy in self._copies.values():
            copy.checked_at = -math.inf

    def forget(self, key: EmbeddingKey) -> None:
        """Forget one that memory lists no longer."""
        self._copies.pop(key, None)
