"""What a fuzzing target is, and where targets are found."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

NAMES = ("requests", "images", "masks", "rle", "policies", "values")


class Refused(Exception):
    """Raised by a target whose input was refused in the documented way, not by a samserve error.

    For instance bytes that are no protobuf message, or a documented ``ValueError``.
    """


@dataclass(frozen=True, slots=True)
class Target:
    """A function that feeds bytes to the product and checks what comes out.

    ``run`` returns if the product accepted the input, raises a `SamserveError` or `Refused` if it
    refused it, and anything else if something is broken.  ``mutate`` changes an input so that its
    structure stays whole, most of the time.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[bytes, Random], bytes]


def load(name: str) -> Target:
    """Import a target: one of `NAMES`, or a module by its dotted name."""
    module = importlib.import_module(name if "." in name else f"fuzz.targets.{name}")
    return Target(name, module.run, module.seeds, module.mutate)
