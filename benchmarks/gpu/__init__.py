"""SAM on one GPU, in one command that needs only torch, numpy and transformers.

Encoders and mask decoders with seeded weights, against what the device reaches in a matrix product
and in a copy; see `__main__`.
"""

import sys
from pathlib import Path

_SERVICE = str(Path(__file__).resolve().parents[2] / "service")
if _SERVICE not in sys.path:
    # The package is not installed on a machine that is only lent.
    sys.path.append(_SERVICE)
