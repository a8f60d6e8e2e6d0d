"""One target in one process, which libFuzzer ends after its runs or at the first finding.

Arguments are the name of the target, the `Limits` of one input, and the options of libFuzzer.
"""

from __future__ import annotations

import sys
from random import Random

import atheris  # type: ignore[import-untyped]

# Only samserve is instrumented for coverage: the rest would only cost time.
with atheris.instrument_imports(include=["samserve"]):
    from fuzz import target

    chosen = target.load(sys.argv[1])


def main() -> None:
    """Run the target; do not return."""
    limits = target.Limits(float(sys.argv[2]), int(sys.argv[3]))

    def check(data: bytes) -> None:
        target.check(chosen, data, limits)

    def mutate(data: bytes, max_bytes: int, seed: int) -> bytes:
        random = Random(seed)
        if chosen.mutate is None or random.random() < 0.4:
            return bytes(atheris.Mutate(data, max_bytes))
        return chosen.mutate(data, random)[:max_bytes]

    target.reset_peak()
    atheris.Setup([sys.argv[0], *sys.argv[4:]], check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
