"""Samples of any kind as RGB of 8 bits.

* 8 bits are left as they are.
* Other samples are scaled linearly: the percentiles 2 and 98 of the image, over its colour bands
  together, become 0 and 255.  They are those of a reduced image of about a million pixels.
* Of one or two bands the first is grey; of three or more the first three are red, green and blue,
  unless the file says which are.
* Pixels without data are white, as are transparent ones in the images that a server decodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from samserve.types import Array, UInt8Array

_PERCENTILES = (2, 98)


@dataclass(frozen=True, slots=True)
class Scale:
    """The sample values that become 0 and 255."""

    low: float
    high: float

    @classmethod
    def of(cls, samples: Array) -> Scale:
        """Return the scale of valid samples ``[n]``, of which some may be NaN."""
        finite = samples[np.isfinite(samples)]
        if not finite.size:
            return cls(0.0, 1.0)
        low, high = np.percentile(finite, _PERCENTILES)
        return cls(float(low), float(high))

    def apply(self, samples: Array) -> UInt8Array:
        """Return uint8 of the same shape; samples that are all equal become 0."""
        width = self.high - self.low
        scaled = (np.nan_to_num(samples.astype(np.float32)) - self.low) * (
            255 / width if width else 0
        )
        return np.clip(np.round(scaled), 0, 255).astype(np.uint8)


def blended(rgb: UInt8Array, alpha: UInt8Array) -> UInt8Array:
    """Return colours ``[h, w, 3]`` blended with white by alpha ``[h, w]``."""
    share = alpha[:, :, None].astype(np.float32) / 255
    return np.round(rgb * share + 255 * (1 - share)).astype(np.uint8)
