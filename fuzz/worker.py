"""One target in a process of its own: libFuzzer ends it after its runs, or at the first finding.

Called with the name of the target, the `Bounds` of one input, and the options of libFuzzer.
"""

from __future__ import annotations

import sys
from random import Random

import atheris  # type: ignore[import-untyped]

# Only the product is measured for coverage: the rest would only take time.
with atheris.instrument_imports(include=["samserve"]):
    from fuzz import target

    chosen = target.load(sys.argv[1])


def main() -> None:
    """Run the target; does not return."""
    bounds = target.Bounds(float(sys.argv[2]), int(sys.argv[3]))

    def check(data: bytes) -> None:
        target.check(chosen, data, bounds)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        if chosen.mutate is None or random.random() < 0.4:
            return bytes(atheris.Mutate(data, most))
        return chosen.mutate(data, random)[:most]

    target.forget_peak()
    atheris.Setup([sys.argv[0], *sys.argv[4:]], check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
